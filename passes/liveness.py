"""Which activation tensors are alive together: the exact peak, not a sum over layers.

A program point is one operator that allocates. Alive at it: its output, and every earlier tensor
that it or a later operator still reads. Views share the storage of their source.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from torch.fx import GraphModule, Node

from advisor.passes.fx import argument, operator_name
from advisor.passes.graph import name_of
from advisor.passes.shapes import TensorInfo

VIEWS: Final = frozenset(
    {
        "view",
        "reshape",
        "_unsafe_view",
        "unsqueeze",
        "squeeze",
        "flatten",
        "expand",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "alias",
        "detach",
    }
)
"""Operators whose output is a window on their input. Transposes are not listed: runtimes that
keep dense tensors (ONNX Runtime, TFLite) copy there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramPoint:
    """node: stable name of the operator. alive: names of the tensors in memory while it runs."""

    node: str
    alive: tuple[str, ...]


def program_points(
    module: GraphModule, shapes: Mapping[str, TensorInfo]
) -> tuple[ProgramPoint, ...]:
    """Every program point in execution order; tensor names are stable names.

    Inputs belong to the caller and outputs to the result, so both live to the end. shapes: by
    node name; nodes without an entry (sizes, tuples) hold no tensor. An operator with several
    outputs allocates all of them that are read.
    """
    nodes = [node for node in module.graph.nodes if node.op != "get_attr"]
    position = {node: index for index, node in enumerate(nodes)}
    first: dict[Node, int] = {}
    last: dict[Node, int] = {}
    for node in nodes:
        owner = _storage(node)
        if owner.name not in shapes:
            continue
        if owner is node:
            first[owner] = position[argument(node, 0) if _is_getitem(node) else node]
        uses = [position[user] for user in node.users]
        end = len(nodes) if node.op == "placeholder" else position[node]
        last[owner] = max(last.get(owner, 0), end, *uses)
    allocating = sorted({first[owner] for owner in first if owner.op == "call_function"})
    return tuple(
        ProgramPoint(
            node=name_of(nodes[here]),
            alive=tuple(name_of(o) for o in first if first[o] <= here <= last[o]),
        )
        for here in allocating
    )


def peak_bytes(points: tuple[ProgramPoint, ...], bytes_of: Mapping[str, int]) -> int:
    """Largest sum of alive tensors; bytes_of: by stable name."""
    return max((sum(bytes_of[name] for name in point.alive) for point in points), default=0)


def _storage(node: Node) -> Node:
    """The node whose memory ``node`` uses; for one of several outputs, that output itself."""
    while node.all_input_nodes:
        source = node.all_input_nodes[0]
        if operator_name(node) in VIEWS:
            is_window = source.op != "get_attr"
        else:
            is_window = _is_getitem(node) and operator_name(source) in VIEWS
        if not is_window:
            break
        node = source
    return node


def _is_getitem(node: Node) -> bool:
    return node.target is operator.getitem
