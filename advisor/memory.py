"""Bytes of activations at every program point, as a function of which tensors are integers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import dataclass

import numpy as np
from torch.fx import Node

from advisor.formats import DTYPE_BITS
from advisor.indicators import Indicators
from advisor.passes.graph import name_of
from advisor.passes.liveness import program_points
from advisor.passes.regions import short_op
from advisor.search.problem import FloatArray
from advisor.setting import Setting
from advisor.targets.rules import MemoryRules


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """A tensor's second form, there from its first reader to its last when an indicator holds."""

    first: int
    last: int
    indicator: int
    size_bytes: float


def alive_bytes(
    setting: Setting, indicators: Indicators
) -> Iterator[tuple[str, float, FloatArray]]:
    """For every program point its node, the bytes in memory when all tensors are floats, and what
    each indicator adds to them.

    Inputs are the caller's: they are there once, whatever the runtime's allocator does. Where
    buffers are planned, a tensor's second form fits into those that wait for their next tensor: it
    counts beside the tensors alive, at points of their own.
    """
    rules, static = setting.capability.memory, setting.capability.static
    nodes = [n for n in setting.graph.module.graph.nodes if n.op != "get_attr"]
    floats, integers = _tensor_bytes(setting, nodes, rules)
    copies = list(_copies(indicators, nodes, floats, integers))
    position = {name_of(node): index for index, node in enumerate(nodes)}
    points = program_points(
        setting.graph.module,
        setting.shapes,
        planned=rules is not None and rules.planned > 0,
        fused=() if static is None else static.fused,
    )
    for point in points:
        second = np.zeros(len(indicators.all))
        for copy in copies:
            if copy.first <= position[point.node] <= copy.last:
                second[copy.indicator] += copy.size_bytes
        if point.waiting:
            held = (*point.alive, *point.waiting)
            yield point.node, *_sum(held, indicators, floats, integers)
        alive, terms = _sum(point.alive, indicators, floats, integers)
        yield point.node, alive, terms + second


def _sum(
    tensors: Collection[str],
    indicators: Indicators,
    floats: Mapping[str, float],
    integers: Mapping[str, float],
) -> tuple[float, FloatArray]:
    """Bytes of tensors as floats, and what each indicator that makes one integers adds."""
    terms = np.zeros(len(indicators.all))
    for tensor in tensors:
        if tensor in indicators.produced:
            terms[indicators.produced[tensor]] += integers[tensor] - floats[tensor]
    return sum(floats[tensor] for tensor in tensors), terms


def _tensor_bytes(
    setting: Setting, nodes: Collection[Node], rules: MemoryRules | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes that every tensor takes in memory as floats, and as integers."""
    width = DTYPE_BITS[setting.capability.float_dtype] // 8
    arena, planned = (1.0, 0.0) if rules is None else (rules.activations, rules.planned)
    outputs = {layer.output for layer in setting.graph.layers}
    unplanned = _unplanned(setting, nodes, outputs, () if rules is None else rules.unplanned)
    floats: dict[str, float] = {}
    integers: dict[str, float] = {}
    for node in nodes:
        if node.name not in setting.shapes:
            continue
        name, size = name_of(node), setting.bytes_of(node.name)
        integers[name] = size / width * (arena + planned)
        if node.op == "placeholder":
            floats[name] = size
        elif rules is not None and _is_absorbed(node, outputs, rules.absorbed):
            floats[name] = 0.0
        else:
            floats[name] = size * (arena if node in unplanned else arena + planned)
    return floats, integers


def _copies(
    indicators: Indicators,
    nodes: Collection[Node],
    floats: Mapping[str, float],
    integers: Mapping[str, float],
) -> Iterator[_Copy]:
    """Integers of tensors that are quantized on their own, floats of integer ones that become
    floats again."""
    position = {node: index for index, node in enumerate(nodes)}
    for node in nodes:
        name, readers = name_of(node), [position[user] for user in node.users]
        for table, sizes in ((indicators.enters, integers), (indicators.leaves, floats)):
            if name in table and readers:
                yield _Copy(
                    first=min(readers),
                    last=max(readers),
                    indicator=table[name],
                    size_bytes=sizes[name],
                )


def _unplanned(
    setting: Setting, nodes: Collection[Node], outputs: Set[str], operators: Collection[str]
) -> set[Node]:
    """Nodes whose float outputs the runtime plans no buffers for. outputs: of layers, by name."""
    found: set[Node] = set()
    for node in nodes:
        if node.op != "call_function" or short_op(node) not in operators:
            continue
        read = [source for source in node.all_input_nodes if source.name in setting.shapes]
        if name_of(node) in outputs or all(source in found for source in read):
            found.add(node)
    return found


def _is_absorbed(node: Node, outputs: Set[str], operators: Collection[str]) -> bool:
    """Whether the float operator becomes part of the layers that read it."""
    return short_op(node) in operators and all(name_of(user) in outputs for user in node.users)
