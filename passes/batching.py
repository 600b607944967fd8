"""Where the samples of a batch are inside a tensor, which need not be its first dimension.

Attention may run on (sequence, batch, channels), and a view may merge batch and sequence either
way round. The symbol that torch.export gave the batch shows which dimension holds it; where a
view merged it with others, their sizes show how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.fx import Node

from advisor.passes.fx import placeholders
from advisor.passes.graph import Graph
from advisor.passes.regions import short_op

RESHAPES = frozenset({"view", "reshape", "_unsafe_view", "flatten", "unflatten"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Dimension ``index`` counts (outer, sample, rest), with the sample between the others."""

    index: int
    outer: int = 1


def batch_symbols(graph: Graph) -> frozenset[Any]:
    """The symbols of the batch dimension; none when the batch is fixed."""
    found: set[Any] = set()
    for node in placeholders(graph.module):
        for index, label in graph.dynamic.get(node.name, {}).items():
            if label == "batch":
                found |= _symbols(node.meta["val"].shape[index])
    return frozenset(found)


def find_place(
    node: Node,
    shapes: Mapping[Node, tuple[int, ...]],
    known: Mapping[Node, Place | None],
    symbols: frozenset[Any],
    samples: int,
) -> Place | None:
    """Where the samples are in the value of ``node``; None when it mixes or lacks them.

    shapes: of this run, for the node and what it reads. known: places of what it reads. Without
    symbols a first dimension of the batch's size is taken for the batch.
    """
    if not symbols:
        return Place(index=0) if shapes[node][:1] == (samples,) else None
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    for index, size in enumerate(value.shape):
        found = _symbols(size)
        if found & symbols:
            alone = shapes[node][index] == samples
            return Place(index=index) if alone else _follow(node, index, shapes, known)
    return None


def split_samples(value: torch.Tensor, place: Place, samples: int) -> torch.Tensor:
    """The value as (samples, the rest)."""
    sizes = list(value.shape)
    sizes[place.index : place.index + 1] = [place.outer, samples, -1]
    return value.reshape(sizes).movedim(place.index + 1, 0).reshape(samples, -1)


def join_samples(rows: torch.Tensor, place: Place, shape: torch.Size) -> torch.Tensor:
    """Undo ``split_samples``: a tensor of ``shape`` from (samples, the rest)."""
    samples = rows.shape[0]
    inner = shape[place.index] // (place.outer * samples)
    sizes = [samples, *shape[: place.index], place.outer, inner, *shape[place.index + 1 :]]
    return rows.reshape(sizes).movedim(0, place.index + 1).reshape(shape)


class Places:
    """Where the samples are in every value of one run, filled in as the nodes are computed."""

    def __init__(self, symbols: frozenset[Any], samples: int) -> None:
        self.samples = samples
        self._symbols = symbols
        self._shapes: dict[Node, tuple[int, ...]] = {}
        self._found: dict[Node, Place | None] = {}

    def see(self, node: Node, value: torch.Tensor) -> None:
        """Note the value that ``node`` has in this run."""
        self._shapes[node] = tuple(value.shape)
        self._found[node] = find_place(node, self._shapes, self._found, self._symbols, self.samples)

    def of(self, node: Node) -> Place | None:
        """The place in a value seen before."""
        return self._found.get(node)


def _follow(
    node: Node,
    index: int,
    shapes: Mapping[Node, tuple[int, ...]],
    known: Mapping[Node, Place | None],
) -> Place | None:
    """The order inside a merged dimension: made by this view, or kept from an input."""
    for source in node.all_input_nodes:
        place = known.get(source)
        if place is None:
            continue
        if short_op(node) in RESHAPES:
            outer, extra = divmod(
                prod(shapes[source][: place.index]) * place.outer, prod(shapes[node][:index])
            )
            return None if extra else Place(index=index, outer=outer)
        if place.index == index and shapes[source][index] == shapes[node][index]:
            return place
    return None


def _symbols(size: Any) -> set[Any]:
    symbolic: Any = getattr(size, "node", None)  # a plain int has none
    return set(symbolic.expr.free_symbols) if symbolic is not None else set()
