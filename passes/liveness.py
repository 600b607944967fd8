"""Which activation tensors are alive together: the exact peak, not a sum over layers.

A program point is one operator that allocates. Alive at it: its output, and every earlier tensor
that it or a later operator still reads. Views share the storage of their source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch.fx import GraphModule, Node

from advisor.passes.graph import name_of
from advisor.passes.regions import short_op
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
        "getitem",
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


def program_points(module: GraphModule, shapes: Mapping[str, TensorInfo]) -> tuple[ProgramPoint, ...]:
    """Every program point in execution order; tensor names are stable names.

    Inputs belong to the caller and outputs to the result, so both live to the end. shapes: by
    node name; nodes without an entry (sizes, tuples) hold no tensor.
    """
    nodes = [node for node in module.graph.nodes if node.op != "get_attr"]
    position = {node: index for index, node in enumerate(nodes)}
    storage = {node: _storage(node) for node in nodes}
    last_use: dict[Node, int] = {}
    for node in nodes:
        owner = storage[node]
        uses = [position[user] for user in node.users if user in position]
        last_use[owner] = max([last_use.get(owner, position[owner]), *uses])
        if node.op == "placeholder":
            last_use[owner] = len(nodes)
    points: list[ProgramPoint] = []
    for node in nodes:
        if node.op != "call_function" or storage[node] is not node or node.name not in shapes:
            continue
        here = position[node]
        alive = [
            owner
            for owner, last in last_use.items()
            if position[owner] <= here <= last and owner.name in shapes
        ]
        points.append(ProgramPoint(node=name_of(node), alive=tuple(map(name_of, alive))))
    return tuple(points)


def peak_bytes(points: tuple[ProgramPoint, ...], bytes_of: Mapping[str, int]) -> int:
    """Largest sum of alive tensors; bytes_of: by stable name."""
    return max((sum(bytes_of[name] for name in point.alive) for point in points), default=0)


def _storage(node: Node) -> Node:
    """The node whose memory ``node`` uses."""
    while (short_op(node) in VIEWS or _is_getitem(node)) and node.all_input_nodes:
        source = node.all_input_nodes[0]
        if source.op == "get_attr":
            break
        node = source
    return node


def _is_getitem(node: Node) -> bool:
    return getattr(node.target, "__name__", "") == "getitem" and isinstance(
        node.meta.get("val"), torch.Tensor
    )
