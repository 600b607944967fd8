"""What kind of thing each output is: it decides how a difference from the float model is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import cast

import torch

from advisor.errors import UsageError
from advisor.passes.divergence import KINDS, OutputKind
from advisor.passes.fx import output_nodes
from advisor.passes.graph import Graph, name_of

EMBEDDING_WORDS = ("embed", "hidden", "pooler", "feature")


def choose_kinds(
    graph: Graph,
    outputs: Sequence[object],
    asked: object,
) -> tuple[list[OutputKind], dict[str, str]]:
    """The kind of every flat output, and by output name how it was decided.

    outputs: one batch of the float model's. asked: one kind for all, or by output name; outputs
    left out of a mapping are ignored.

    Raises:
        UsageError: unknown kind or output name, or no output that can be judged.
    """
    names = graph.output_names
    if isinstance(asked, Mapping):
        asked = cast("Mapping[str, str]", asked)
    elif asked is not None and not isinstance(asked, str):
        raise UsageError(
            f"output={asked!r}: expected a kind ({', '.join(KINDS)}), or a kind by output name; "
            f"the model's outputs: {', '.join(names)}"
        )
    if isinstance(asked, Mapping):
        for name in asked:
            if name not in names:
                close = get_close_matches(name, names, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise UsageError(
                    f"output names {name!r}{hint}; the model's outputs: {', '.join(names)}"
                )
    kinds: list[OutputKind] = []
    said: dict[str, str] = {}
    for index, (name, value) in enumerate(zip(names, outputs, strict=True)):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            kind, why = "ignored", "not floating point"
        elif isinstance(asked, str):
            kind, why = asked, "as asked"
        elif isinstance(asked, Mapping):
            kind, why = asked.get(name, "ignored"), "as asked" if name in asked else "not asked"
        else:
            kind, why = _guess(graph, index, name, value)
        kinds.append(_known(kind))
        said[name] = f"{kind} ({why})"
    if all(kind == "ignored" for kind in kinds):
        raise UsageError(
            f"no output to judge: {', '.join(f'{n}: {s}' for n, s in said.items())}; "
            "name one with output={'name': 'logits'}"
        )
    return kinds, said


def _known(kind: str) -> OutputKind:
    for known in KINDS:
        if kind == known:
            return known
    raise UsageError(f"unknown output kind {kind!r}; possible: {', '.join(KINDS)}")


def _guess(graph: Graph, index: int, name: str, value: torch.Tensor) -> tuple[OutputKind, str]:
    if "logit" in name.lower():
        return "logits", "guessed from its name"
    if any(word in name.lower() for word in EMBEDDING_WORDS):
        return "embedding", "guessed from its name"
    if value.ndim >= 2 and value.shape[-1] > 1:
        norms = value.float().square().sum(dim=-1).sqrt()
        if bool((norms - 1).abs().max() < 1e-3):
            return "embedding", "guessed: rows of unit length"
        made_by = name_of(output_nodes(graph.module)[index])
        layers = {layer.output: layer for layer in graph.layers}
        if value.ndim <= 3 and made_by in layers and layers[made_by].op == "linear":
            return "logits", f"guessed: linear layer {made_by} comes last; pass output= otherwise"
    return "regression", "guessed: neither logits nor an embedding; pass output= otherwise"
