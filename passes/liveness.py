"""Which activation tensors are alive together: the exact peak, not a sum over layers.

A program point is one operator that allocates. Alive at it: its output, and every earlier tensor
that it or a later operator still reads. Views share the storage of their source. A runtime that
plans its buffers once for every run keeps a buffer until its last tensor is read, and lends it only
to tensors of the same shape: in between it is nobody's, and still there.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
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


IN_PLACE: Final = frozenset(
    {
        "add",
        "clamp",
        "div",
        "erf",
        "hardtanh",
        "mul",
        "relu",
        "sigmoid",
        "softmax",
        "sub",
        "tanh",
        "where",
    }
)
"""Operators whose output takes the place of an input that nothing else reads, where buffers are
planned (ONNX Runtime's kernels that declare MayInplace)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramPoint:
    """node: stable name of the operator. alive: names of the tensors in memory while it runs.
    waiting: those that its buffers are held for, between two tensors."""

    node: str
    alive: tuple[str, ...]
    waiting: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stay:
    """A tensor in a buffer, from the operator that writes it to the last that reads it."""

    node: Node
    first: int
    last: int


_Buffer = list[_Stay]
"""What one piece of memory holds, one after another."""


def program_points(
    module: GraphModule,
    shapes: Mapping[str, TensorInfo],
    *,
    planned: bool = False,
    fused: Collection[str] = (),
) -> tuple[ProgramPoint, ...]:
    """Every program point in execution order; tensor names are stable names.

    Inputs belong to the caller and outputs to the result, so both live to the end. shapes: by
    node name; nodes without an entry (sizes, tuples) hold no tensor. An operator with several
    outputs allocates all of them that are read. planned: buffers are planned for every run at
    once. fused: activation functions that run inside the operator before them.
    """
    nodes = [node for node in module.graph.nodes if node.op != "get_attr"]
    stays = _stays(nodes, shapes)
    buffers = _share(stays, fused) if planned else [[stay] for stay in stays]
    allocating = sorted({stay.first for stay in stays if stay.node.op == "call_function"})
    points: list[ProgramPoint] = []
    for here in allocating:
        alive: list[str] = []
        waiting: list[str] = []
        for buffer in buffers:
            if buffer[0].first <= here <= buffer[-1].last:
                tenant = next(stay for stay in buffer if here <= stay.last)
                (alive if tenant.first <= here else waiting).append(name_of(tenant.node))
        points.append(
            ProgramPoint(node=name_of(nodes[here]), alive=tuple(alive), waiting=tuple(waiting))
        )
    return tuple(points)


def _stays(nodes: list[Node], shapes: Mapping[str, TensorInfo]) -> list[_Stay]:
    """Every tensor that has memory of its own, and how long something needs it."""
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
    return [_Stay(node=node, first=begin, last=last[node]) for node, begin in first.items()]


def _share(stays: list[_Stay], fused: Collection[str]) -> list[_Buffer]:
    """Buffers as ONNX Runtime plans them (core/framework/allocation_planner.cc).

    A tensor takes the place of an input, or the buffer of its shape and dtype that was freed last,
    or a new one.
    """
    buffers: list[_Buffer] = []
    home: dict[Node, _Buffer] = {}
    for stay in stays:
        before = next((h for h in _sources(stay, home) if _may_follow(h[-1], stay)), None)
        free = [b for b in buffers if b[-1].last < stay.first and _alike(b[-1].node, stay.node)]
        buffer = before or max(reversed(free), key=lambda b: b[-1].last, default=None)
        if buffer is None:
            buffer = _Buffer()
            buffers.append(buffer)
        is_fused = before is not None and operator_name(stay.node) in fused
        # Of a fused pair the first never exists.
        buffer.append(replace(stay, first=buffer.pop().first) if is_fused else stay)
        home[stay.node] = buffer
    return buffers


def _sources(stay: _Stay, home: Mapping[Node, _Buffer]) -> list[_Buffer]:
    """Buffers of what an operator that works in place reads."""
    if operator_name(stay.node) not in IN_PLACE:
        return []
    owners = [_storage(node) for node in stay.node.all_input_nodes]
    return [home[o] for o in owners if o in home and home[o][-1].node is o]


def _may_follow(source: _Stay, stay: _Stay) -> bool:
    return source.last == stay.first and _alike(source.node, stay.node)


def _alike(one: Node, other: Node) -> bool:
    """Whether one buffer can hold both: same shape and dtype, neither an input nor an output."""
    kinds: list[object] = []
    for node in (one, other):
        value = node.meta.get("val")
        if node.op == "placeholder" or not isinstance(value, torch.Tensor):
            return False
        if any(user.op == "output" for user in node.users):
            return False
        kinds.append((tuple(map(str, value.shape)), value.dtype))
    return kinds[0] == kinds[1]


def peak_bytes(points: tuple[ProgramPoint, ...], bytes_of: Mapping[str, int]) -> int:
    """Largest sum of tensors and buffers that wait; bytes_of: by stable name."""
    held = ((*point.alive, *point.waiting) for point in points)
    return max((sum(bytes_of[name] for name in each) for each in held), default=0)


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
