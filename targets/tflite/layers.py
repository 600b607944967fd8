"""A plan's weights and biases in the flatbuffer: which operator form each scheme takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final

import numpy as np
import torch
from torch.fx import Node

from advisor.errors import UnsupportedError
from advisor.formats import PerBlock, Scheme, scheme_named
from advisor.passes.fx import argument, attribute
from advisor.passes.graph import Layer, QuantizedGraph, WeightTable
from advisor.passes.layers import find_calls
from advisor.passes.recurrent import WEIGHTS_AT
from advisor.targets.tflite.flatbuffer import FlatModel
from advisor.targets.tflite.skeleton import Place, Skeleton
from advisor.targets.tflite.weights import add_weight, per_axis

BIAS_SLOTS: Final = {
    "FULLY_CONNECTED": 2,
    "CONV_2D": 2,
    "DEPTHWISE_CONV_2D": 2,
    "TRANSPOSE_CONV": 3,
}
"""Where an operator that has a bias reads it. They also read integer weights; EMBEDDING_LOOKUP
does too."""


def write_layers(
    model: FlatModel, graph: QuantizedGraph, skeleton: Skeleton, operators: Sequence[Any]
) -> None:
    """Put every layer's planned weight and bias into the model.

    operators: those of the skeleton, by the indices that it has for them.

    Raises:
        UnsupportedError: a layer that is not float has no operator to hold its weight, or a form
            that TFLite does not have.
    """
    source = graph.float_graph
    after = find_calls(graph.module, source.layers)
    written: dict[tuple[str, tuple[int, ...]], int] = {}
    named: dict[int, str] = {}
    for layer in source.layers:
        scheme = scheme_named(graph.assignment[layer.name].scheme)
        place = skeleton.places.get(layer.name)
        if place is None:
            if scheme.name != "fp32":
                raise _unmatched(layer, scheme)
            continue
        operator = operators[place.operator]
        if scheme.name == "fp32":
            _name_weight(model, operator, place, layer, named)
        else:
            _write_weight(model, operator, place, layer, scheme, graph.weights, written)
        node = after.get(layer.name)
        if node is None or node.target in WEIGHTS_AT:  # recurrent biases stay as they are
            continue
        if model.code(operator) in BIAS_SLOTS:
            _write_bias(model, operator, layer, node, graph)


def _name_weight(
    model: FlatModel, operator: Any, place: Place, layer: Layer, named: dict[int, str]
) -> None:
    """Give the weight its name; where another one has the same values, a tensor of its own."""
    tensor = int(operator.inputs[place.slot])
    if named.setdefault(tensor, layer.weight) == layer.weight:
        model.rename(tensor, layer.weight)
    else:
        operator.inputs[place.slot] = model.add_twin(tensor, layer.weight)


def _write_weight(
    model: FlatModel,
    operator: Any,
    place: Place,
    layer: Layer,
    scheme: Scheme,
    tables: Mapping[str, WeightTable],
    written: dict[tuple[str, tuple[int, ...]], int],
) -> None:
    table = tables.get(layer.weight)
    if table is None:
        raise UnsupportedError(
            f"{layer.name} is {scheme.name}, but its integers are not in the graph"
        )
    old = int(operator.inputs[place.slot])
    key = (layer.weight, place.order)
    if key not in written:
        held = WeightTable(values=table.values.reshape(layer.weight_shape), scale=table.scale)
        axis = place.order.index(layer.scale_axis)
        written[key] = add_weight(model, layer.weight, held, scheme, place.order, axis)
        _keep_shape(model, old, written[key])
    new = written[key]
    code = model.code(operator)
    reads_integers = code == "EMBEDDING_LOOKUP" or scheme.activation is not None
    if not reads_integers or table.scale is None:
        operator.inputs[place.slot] = _dequantized(model, operator, new, layer.weight)
        return
    if code != "EMBEDDING_LOOKUP" and code not in BIAS_SLOTS:
        raise UnsupportedError(
            f"{layer.name}: litert-torch writes it as {code}, which reads no integers, so it "
            f"cannot be {scheme.name}; pin it to a weight-only scheme (w8) or fp32"
        )
    operator.inputs[place.slot] = new
    if code == "FULLY_CONNECTED" and not scheme.is_static:
        operator.builtinOptions.asymmetricQuantizeInputs = True


def _keep_shape(model: FlatModel, old: int, new: int) -> None:
    """A convolution over one dimension is stored as one over two of which one has size 1."""
    shape, quantization = model.shape(old), model.tensor(new).quantization
    count = 0 if quantization is None or quantization.scale is None else len(quantization.scale)
    if quantization is not None and shape != model.shape(new) and count > 1:
        before = prod(model.shape(new)[: quantization.quantizedDimension])
        quantization.quantizedDimension = next(
            axis
            for axis, size in enumerate(shape)
            if size == count and prod(shape[:axis]) == before
        )
    model.tensor(new).shape = list(shape)


def _dequantized(model: FlatModel, operator: Any, weight: int, name: str) -> int:
    """The float tensor that a DEQUANTIZE before ``operator`` makes of a constant."""
    floats = model.add_tensor(f"{name}/float", model.shape(weight), "FLOAT32")
    made = model.make_operator("DEQUANTIZE", [weight], [floats])
    model.operators.insert(model.operators.index(operator), made)
    return floats


def _write_bias(
    model: FlatModel, operator: Any, layer: Layer, after: Node, graph: QuantizedGraph
) -> None:
    """The planned bias: int32 of a static layer, else the float one where the plan changes it."""
    scheme = scheme_named(graph.assignment[layer.name].scheme)
    at = BIAS_SLOTS[model.code(operator)]
    slot = int(operator.inputs[at]) if len(operator.inputs) > at else -1
    planned = argument(after, 2)
    value: torch.Tensor | None = None
    if isinstance(planned, Node) and planned.op == "get_attr":
        value = attribute(graph.module, str(planned.target)).detach()
    name = layer.bias or f"{layer.name}.bias"
    before = attribute(graph.float_graph.module, layer.bias) if layer.bias else None
    changed = value is not None and (before is None or not torch.equal(value, before))
    # The converter leaves out a bias of nothing but zeros; the planned one need not be zero.
    is_apart = slot < 0 and before is not None and bool(before.any())
    if is_apart and (changed or scheme.is_static):
        raise UnsupportedError(
            f"{layer.name}: litert-torch adds its bias in an operator of its own, which cannot "
            f"hold the one that the plan needs for {scheme.name}; pin it to fp32"
        )
    if not scheme.is_static:
        if changed and value is not None:
            shape = (value.numel(),) if slot < 0 else model.shape(slot)
            data = value.to(torch.float32).numpy().tobytes()
            made = model.add_tensor(name, shape, "FLOAT32", data=data)
            operator.inputs = [*operator.inputs[:at], made]
        elif slot >= 0:
            model.rename(slot, name)
        return
    scale = graph.weights[layer.weight].scale
    assert scale is not None  # a static scheme has integer weights
    step = scale * torch.tensor(graph.activations[layer.input].scale)
    if value is None:
        value = torch.zeros(scale.numel())
    integers = torch.round(value / step).to(torch.int32).numpy()
    made = model.add_tensor(
        name,
        (integers.size,),
        "INT32",
        data=np.ascontiguousarray(integers).tobytes(),
        quantization=per_axis(step.expand(integers.size).numpy(), axis=0),
    )
    operator.inputs = [*operator.inputs[:at], made]


def _unmatched(layer: Layer, scheme: Scheme) -> UnsupportedError:
    blocks = isinstance(scheme.weight.granularity, PerBlock)
    return UnsupportedError(
        f"{layer.name} ({layer.op}) should be {scheme.name}{' with blocks' if blocks else ''}, but "
        "no operator that litert-torch wrote reads its weight as it is; pin it to fp32, or plan "
        "for runtime='onnxruntime'"
    )
