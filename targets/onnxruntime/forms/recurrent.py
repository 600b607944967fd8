"""LSTM and GRU of one layer and direction; under dynamic schemes DynamicQuantizeLSTM.

ONNX orders the gates of an LSTM input, output, forget, cell and those of a GRU update, reset,
new; torch input, forget, cell, output and reset, update, new
(https://onnx.ai/onnx/operators/onnx__LSTM.html, https://onnx.ai/onnx/operators/onnx__GRU.html).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from advisor.passes.fx import attribute
from advisor.passes.graph import Layer, WeightTable
from advisor.passes.recurrent import WEIGHTS_AT
from advisor.targets.manifest import LayerRecord
from advisor.targets.onnxruntime.forms.builder import Builder
from advisor.targets.onnxruntime.forms.form import Call, Form, Found, first_input
from advisor.targets.onnxruntime.forms.weights import (
    array_of,
    constant_array,
    find_float_weight,
    float_weight,
    names_of,
)

if TYPE_CHECKING:
    import onnx_ir as ir

GATES: Final = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
"""By operator, the gates of torch in ONNX's order."""

QUANTIZED: Final = "DynamicQuantizeLSTM"


def write(build: Builder, call: Call) -> tuple[ir.Value, ...]:
    """One operator, its output without the dimension of directions; then the cell state, if any.

    What ONNX Runtime adds to both products, it adds in floats: biases stay as they are.
    """
    arguments: tuple[Any, ...] = call.node.args
    first = WEIGHTS_AT[call.node.target][0]
    given = iter(call.inputs)
    tensors = [None if value is None else next(given) for value in arguments[: first + 4]]
    x, states = tensors[0], tensors[1:first]
    op = call.layer.op
    scales: list[ir.Value] = []
    if call.scheme.is_dynamic:
        kind = QUANTIZED
        weights, scales = _integers(build, call)
    else:
        kind = op.upper()
        weights = [_floats(build, call, layer) for layer in call.layers]
    bias = _bias(build, call, arguments[first + 2 : first + 4])
    inputs = [x, *weights, bias, None, *states, *([None, *scales] if scales else [])]
    outputs = build.nodes(
        kind,
        inputs,
        role="op",
        outputs=3 if op == "lstm" else 2,
        hidden_size=call.layers[1].weight_shape[1],
        direction="reverse" if arguments[first + 4] else "forward",
        **({"linear_before_reset": 1} if op == "gru" else {}),
    )
    directions = build.constant("recurrent/directions", np.array([1], np.int64))
    y = build.node("Squeeze", [outputs[0], directions], role="output")
    if op == "lstm" and arguments[-1]:
        y = build.node("Concat", [y, outputs[2]], role="output", axis=0)
    return (y,)


def reorder(values: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """The gates along the first dimension in another order."""
    gates = values.chunk(len(order))
    return torch.cat([gates[gate] for gate in order])


def _reordered(table: WeightTable, order: Sequence[int]) -> WeightTable:
    scale = None if table.scale is None else reorder(table.scale, order)
    return WeightTable(values=reorder(table.values, order), scale=scale)


def _constant(call: Call, node: Any) -> torch.Tensor:
    module = call.node.graph.owning_module
    assert module is not None  # a captured graph belongs to its module
    value: torch.Tensor = attribute(module, str(node.target))
    return value


def _part(call: Call, layer: Layer) -> Call:
    """The call as one of its weights sees it, gates in ONNX's order."""
    part = replace(call, layer=layer, table=call.tables.get(layer.weight))
    return replace(part, table=_reordered(part.stored, GATES[layer.op]))


def _floats(build: Builder, call: Call, layer: Layer) -> ir.Value:
    """One weight as floats of (1, gates, inputs), from what is stored."""
    if call.scheme.weight.dtype == "float32":
        weight = _constant(call, call.node.args[WEIGHTS_AT[call.node.target][_index(call, layer)]])
        ordered = array_of(reorder(weight, GATES[layer.op]))
        return build.constant(f"{layer.weight}_gates", ordered[None])
    part = _part(call, layer)
    shape = build.constant(f"{layer.weight}_shape", np.array([1, *layer.weight_shape], np.int64))
    real = float_weight(build, part, call.inputs[0])
    return build.node("Reshape", [real, shape], role="weight")


def _index(call: Call, layer: Layer) -> int:
    return call.layers.index(layer)


def _integers(build: Builder, call: Call) -> tuple[list[ir.Value], list[ir.Value]]:
    """Both weights as integers of (1, inputs, gates), and a scale and a zero per gate of each."""
    weights: list[ir.Value] = []
    scales: list[ir.Value] = []
    for layer in call.layers:
        part = _part(call, layer)
        table = part.stored
        assert table.scale is not None  # integers have scales
        integers, scale = names_of(part)
        columns = array_of(table.values).T
        weights.append(build.constant(f"{integers}_columns", columns[None]))
        rows = array_of(table.scale).reshape(1, -1)
        zeros = np.zeros(rows.shape, np.int8)
        scales.append(build.constant(f"{scale}_row", rows))
        scales.append(build.constant(f"{layer.weight}_zero_point", zeros))
    return weights, scales


def _bias(build: Builder, call: Call, biases: Sequence[Any]) -> ir.Value | None:
    """The input's and the recurrent bias, one after the other, in ONNX's order."""
    if biases[0] is None:
        return None
    parts = [reorder(_constant(call, bias), GATES[call.layer.op]) for bias in biases]
    return build.constant(f"{biases[0].target}_gates", array_of(torch.cat(parts))[None])


def read(node: ir.Node, layer: LayerRecord) -> Found | None:
    """What ``write`` wrote."""
    if node.op_type not in ("LSTM", "GRU", QUANTIZED):
        return None
    order = GATES["gru" if node.op_type == "GRU" else "lstm"]
    back = [order.index(gate) for gate in range(len(order))]
    value = node.inputs[1 + layer.operand]
    if node.op_type == QUANTIZED:
        values, scale = constant_array(value), constant_array(node.inputs[8 + 2 * layer.operand])
        zeros = constant_array(node.inputs[9 + 2 * layer.operand])
        if values is None or scale is None or zeros is None or zeros.any():
            return None
        stored = WeightTable(
            values=torch.as_tensor(values[0]).t().contiguous(),
            scale=torch.as_tensor(scale).reshape(-1),
        )
        return Found(scheme="w8a8-dynamic", table=_reordered(stored, back))
    found = find_float_weight(value, layer.weight_shape)
    if found is None or found.table is None:
        return None
    rows = found.table.values.reshape(layer.weight_shape[0], -1)
    table = WeightTable(values=rows, scale=found.table.scale)
    return Found(scheme=found.scheme, table=_reordered(table, back))


def kernels(layer: LayerRecord) -> frozenset[str]:
    """The operator that was written; nothing replaces it."""
    return frozenset({QUANTIZED if "a8-dynamic" in layer.scheme else layer.op.upper()})


FORM: Final = Form(write=write, read=read, kernels=kernels, start=first_input)
