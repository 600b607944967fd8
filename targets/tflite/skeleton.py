"""The float model without its markers, and where every layer and marked value is in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import prod
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch.fx import GraphModule, Node

from advisor.passes.fx import attribute
from advisor.passes.graph import Graph, Layer, name_of
from advisor.targets.tflite.convert import convert
from advisor.targets.tflite.flatbuffer import FlatModel
from advisor.targets.tflite.markers import (
    CHANNELS_LAST,
    CUSTOM_CODE,
    NAMELESS,
    end_of,
    find_nodes,
    fused_operators,
    sources_of,
)
from advisor.targets.tflite.tidy import tidy
from advisor.targets.tflite.values import write_values

LAYOUTS: Final = {
    "linear": ((0, 1),),
    "embedding": ((0, 1),),
    "conv1d": ((0, 2, 1), (1, 2, 0)),
    "conv2d": ((0, 2, 3, 1), (1, 2, 3, 0)),
    "conv_transpose1d": ((1, 2, 0),),
    "conv_transpose2d": ((1, 2, 3, 0),),
}
"""Orders of the axes in which a kind of layer keeps its weight."""

DEPTHWISE_AT: Final = 1
"""Where the order of depthwise convolutions is among those of a convolution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A marked value. tensor: its index. channels_last: (N, C, H, W) is kept as (N, H, W, C)."""

    tensor: int
    channels_last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a layer's weight is. operator: index of its reader, slot: which of its inputs.

    order: axes of the torch weight as they are stored.
    """

    operator: int
    slot: int
    order: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """content: flatbuffer without markers. values: by graph node name. places: by layer name.

    missing: layers whose weight no operator reads as it is.
    """

    content: bytes
    values: Mapping[str, Value]
    places: Mapping[str, Place]
    missing: tuple[str, ...]


_MADE: WeakKeyDictionary[GraphModule, dict[tuple[int, int | None], Skeleton]] = WeakKeyDictionary()


def skeleton_of(graph: Graph, batch: int, sequence: int | None) -> Skeleton:
    """The skeleton of a graph at fixed shapes; converted at the first call.

    Raises:
        InputError: the model does not accept this batch or sequence.
        UnsupportedError: the converter has no form of an operator.
    """
    made = _MADE.setdefault(graph.module, {})
    if (batch, sequence) not in made:
        made[batch, sequence] = _make(graph, batch, sequence)
    return made[batch, sequence]


def _make(graph: Graph, batch: int, sequence: int | None) -> Skeleton:
    model = FlatModel(convert(graph, batch, sequence))
    values = _take_markers_out(model)
    tidy(model, {value.tensor for value in values.values()})
    _name_tensors(model, graph, values)
    places = dict(_find_places(model, graph, values))
    return Skeleton(
        content=model.pack(),
        values=values,
        places=places,
        missing=tuple(layer.name for layer in graph.layers if layer.name not in places),
    )


def _take_markers_out(model: FlatModel) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for operator in [op for op in model.operators if model.custom_code(op) == CUSTOM_CODE]:
        text = bytes(operator.customOptions).decode()
        source, output = int(operator.inputs[0]), int(operator.outputs[0])
        name = text.removesuffix(CHANNELS_LAST)
        if not name.startswith(NAMELESS):
            values[name] = Value(tensor=source, channels_last=text.endswith(CHANNELS_LAST))
        model.operators.remove(operator)
        model.replace_uses(output, source)
    return values


def _name_tensors(model: FlatModel, graph: Graph, values: Mapping[str, Value]) -> None:
    """Stable names for inputs, outputs and marked values; the operator's for all others."""
    stable = {node.name: name_of(node) for node in graph.module.graph.nodes}
    nodes = find_nodes(graph)
    wanted: dict[int, str] = {}
    for layer in graph.layers:
        value = values.get(nodes[layer.name].name) if layer.name in nodes else None
        if value is not None and model.is_constant(value.tensor):
            wanted[value.tensor] = layer.weight  # the layer repeats it once, or the like
    for name, value in values.items():
        wanted.setdefault(value.tensor, stable[name])
    for index, name in zip(model.graph.outputs, graph.output_names, strict=True):
        wanted.setdefault(int(index), name)
    for index, name in zip(model.graph.inputs, _input_names(graph), strict=True):
        # Where the channels move first, the value of that name is the tensor after the move.
        wanted.setdefault(int(index), f"{name}/input" if name in wanted.values() else name)
    used: Counter[str] = Counter(wanted.values())
    makers = model.producers()
    for index in range(len(model.graph.tensors)):
        name = wanted.get(index, "")
        if not name:
            name = model.code(makers[index]).lower() if index in makers else "constant"
            used[name] += 1
            name = f"{name}.{used[name]}"
        model.rename(index, name)
    for kind, entry in model.signature():
        names = _input_names(graph) if kind == "input" else graph.output_names
        position = int(entry.name.decode().rpartition("_")[2])  # args_0, output_1
        entry.name = names[position].encode()
    places = {
        stable[name]: (model.name(value.tensor), value.channels_last)
        for name, value in values.items()
    }
    calls = nodes.values()
    ends = {name_of(node): stable[end_of(node, fused_operators()).name] for node in calls}
    starts = {name_of(node): [stable[source.name] for source in sources_of(node)] for node in calls}
    write_values(model, places, ends, starts)


def _input_names(graph: Graph) -> tuple[str, ...]:
    """Names of the tensor inputs."""
    return tuple(
        node.name
        for node in graph.module.graph.nodes
        if node.op == "placeholder" and isinstance(node.meta.get("val"), torch.Tensor)
    )


def _find_places(
    model: FlatModel, graph: Graph, values: Mapping[str, Value]
) -> Iterator[tuple[str, Place]]:
    """Match every layer to the operator that reads its weight, byte for byte.

    Where the layer's output is marked only the operators between marked values are candidates, so
    that tied weights are told apart.
    """
    nodes = find_nodes(graph)
    for layer in graph.layers:
        if not layer.weight:
            continue
        weight: torch.Tensor = attribute(graph.module, layer.weight)
        near = _between(model, nodes.get(layer.name), values)
        place = _find_weight(model, layer, weight.detach().numpy(), near)
        if place is not None:
            yield layer.name, place


def _between(model: FlatModel, call: Node | None, values: Mapping[str, Value]) -> list[int]:
    """Indices of the operators that compute a layer's marked output, latest first."""
    end = None if call is None else values.get(end_of(call, fused_operators()).name)
    if end is None:
        return list(range(len(model.operators)))
    found = segment(model, end.tensor, {value.tensor for value in values.values()})
    return found or list(range(len(model.operators)))


def segment(model: FlatModel, end: int, stops: set[int]) -> list[int]:
    """Indices of the operators between tensor ``end`` and the tensors ``stops``, latest first."""
    by_output = {int(o): i for i, op in enumerate(model.operators) for o in op.outputs}
    found: set[int] = set()
    open_tensors = [end]
    while open_tensors:
        tensor = open_tensors.pop()
        index = by_output.get(tensor)
        if index is None or index in found or (tensor in stops and tensor != end):
            continue
        found.add(index)
        open_tensors += [int(i) for i in model.operators[index].inputs if i >= 0]
    return sorted(found, reverse=True)


def _find_weight(
    model: FlatModel, layer: Layer, weight: np.ndarray[Any, Any], operators: list[int]
) -> Place | None:
    orders = LAYOUTS.get(layer.op) or tuple(permutations(range(weight.ndim)))
    wanted = [(order, np.ascontiguousarray(weight.transpose(order)).tobytes()) for order in orders]
    count = prod(weight.shape)
    for index in operators:
        for slot, tensor in enumerate(model.operators[index].inputs):
            if tensor < 0 or prod(model.shape(int(tensor))) != count:
                continue
            data = model.data(int(tensor))
            for order, expected in wanted:
                if data == expected and _fits(model, index, order, orders):
                    return Place(operator=index, slot=slot, order=order)
    return None


def _fits(
    model: FlatModel, operator: int, order: tuple[int, ...], orders: Sequence[tuple[int, ...]]
) -> bool:
    """Whether the operator keeps its weight in this order: some weights are equal in several."""
    code = model.code(model.operators[operator])
    if code in ("CONV_2D", "DEPTHWISE_CONV_2D") and len(orders) == DEPTHWISE_AT + 1:
        return (code == "DEPTHWISE_CONV_2D") == (order == orders[DEPTHWISE_AT])
    return True
