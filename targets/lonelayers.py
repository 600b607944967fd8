"""Run every layer and every quantizer of a file alone, on the simulation's own numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.fx import GraphModule

from advisor.passes.graph import name_of
from advisor.passes.layers import LAYER_OPS, input_argument
from advisor.passes.ops import QUANTIZE_STATIC
from advisor.targets.agreement import (
    FLIP_SHARE,
    FLOAT_TOLERANCE,
    Agreement,
    Array,
    Tap,
    before_quantizers,
    compare_floats,
    compare_integers,
    find_calls,
    run_tapped,
)
from advisor.targets.manifest import LayerRecord
from advisor.targets.parts import RECURRENT

Pair = tuple[Array, Array]
"""What the file and what the simulation gives."""


def find_taps(module: GraphModule, layers: Sequence[LayerRecord]) -> list[Tap]:
    """The layers that the simulation computes with an operator of their own, and its quantizers."""
    taps: list[Tap] = []
    for record, node, static in find_calls(module, layers):
        # A recurrent layer's steps are several operators; a product with a constant is none of a
        # converter's layers, and is judged with the whole.
        if record.weight and record.op not in RECURRENT and node.target in LAYER_OPS:
            taps.append(Tap(record, (before_quantizers(input_argument(node), static),), node))
    for node in module.graph.find_nodes(op="call_function", target=QUANTIZE_STATIC):
        record = LayerRecord(
            name=f"quantizer of {name_of(node)}",
            op="quantize",
            scheme="fp32",
            weight="",
            weight_shape=(),
            weight_sha256="",
            node=name_of(node),
        )
        taps.append(Tap(record, (node.all_input_nodes[0],), node))
    return taps


def collect_pairs(
    module: GraphModule,
    taps: Sequence[Tap],
    pieces: Sequence[Sequence[torch.Tensor]],
    run: Callable[[Tap, torch.Tensor], Array | None],
) -> dict[str, list[Pair]]:
    """By layer what the file and the simulation give for the simulation's own input.

    module: the simulation. pieces: flat inputs at the batch the file was made for. run: the file's
    layer on an input; None where it is not there.
    """
    pairs: dict[str, list[Pair]] = {tap.layer.name: [] for tap in taps}

    def judge(tap: Tap, feeds: Sequence[torch.Tensor], expected: torch.Tensor) -> None:
        found = run(tap, feeds[0])
        if found is not None and found.size == expected.numel():
            pairs[tap.layer.name].append((found.reshape(expected.shape), expected.numpy()))

    for flat in pieces:
        run_tapped(module, taps, flat, judge)
    return pairs


def judge_pairs(
    tap: Tap,
    pairs: Sequence[Pair],
    *,
    is_there: bool,
    share: float = FLIP_SHARE,
    tolerance: float = FLOAT_TOLERANCE,
) -> Agreement:
    """Whether a layer agrees on all that was collected. is_there: whether the file has it."""
    name = tap.layer.name
    if not pairs:
        problem = "has another shape" if is_there else "the layer is not in the package"
        return Agreement(layer=name, error=float("inf"), problem=problem)
    found = np.stack([pair[0] for pair in pairs])
    expected = np.stack([pair[1] for pair in pairs])
    if tap.end.target is QUANTIZE_STATIC:
        return compare_integers(name, found, expected, share)
    return compare_floats(name, found, expected, tolerance)
