"""A model with four-bit floats as one in ONNX's own operators on wider floats, with their numbers.

ONNX Runtime's CPU has no kernels for them, and TensorRT's operator that finds scales is nobody
else's. Weights become float32 constants; the operator becomes the arithmetic that it stands for.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from advisor.passes.float4 import LARGEST, LARGEST_SCALE
from advisor.targets.onnxruntime.forms.builder import Builder
from advisor.targets.onnxruntime.tidy import NAME_PROPERTY
from advisor.targets.tensorrt.forms.float4 import BLOCK, DOMAIN, FLOAT8_NUMBER, QUANTIZER
from advisor.targets.tensorrt.forms.weights import CASTS, find_weight
from advisor.targets.tensorrt.numbers import Array, kind_of, stored_array

if TYPE_CHECKING:
    import onnx_ir as ir


def widen_float4(model: ir.Model) -> None:
    """Replace four-bit floats in the model itself; names of layers stay."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    used = _names_given(model)
    for node in list(model.graph):
        if node.op_type == QUANTIZER:
            _write_arithmetic(model, node, used)
        elif node.op_type == "DequantizeLinear" and _is_weight(node):
            _write_constant(model, node)
    RemoveUnusedNodesPass()(model)
    model.graph.opset_imports.pop(DOMAIN, None)


def _names_given(model: ir.Model) -> Counter[str]:
    """How often every name was given, as ``Builder`` counts: "name", then "name/2", and so on."""
    used: Counter[str] = Counter()
    for node in model.graph:
        base, _, number = str(node.name).rpartition("/")
        name, count = (base, int(number)) if number.isdigit() else (str(node.name), 1)
        used[name] = max(used[name], count)
    return used


def _is_weight(node: ir.Node) -> bool:
    return kind_of(node.inputs[0]) == "FLOAT4E2M1" and stored_array(node.inputs[0]) is not None


def _write_constant(model: ir.Model, node: ir.Node) -> None:
    """The real weight where its DequantizeLinear was."""
    weight = find_weight(node.outputs[0])
    assert weight is not None  # its numbers are a constant
    assert weight.scale is not None
    real = weight.values.astype(np.float32) * np.repeat(weight.scale, weight.block, axis=-1)
    build = _builder(model, node, Counter())
    value = build.constant(f"{node.name}/real", real)
    for reader, index in list(node.outputs[0].uses()):
        reader.replace_input_with(index, value)


def _write_arithmetic(model: ir.Model, node: ir.Node, used: Counter[str]) -> None:
    """Blocks over their scales, rounded to E2M1, times their scales."""
    build = _builder(model, node, used)
    x, unit = node.inputs[0], stored_array(node.inputs[1])
    assert x is not None
    assert unit is not None  # written as a constant

    def op(kind: str, *inputs: ir.Value | Array, **attributes: object) -> ir.Value:
        values = [
            build.constant(f"{build.name}/{kind}/{used[kind]}/{place}", each)
            if isinstance(each, np.ndarray)
            else each
            for place, each in enumerate(inputs)
        ]
        used[kind] += 1
        return build.node(kind, [*values], role="input", **attributes)

    def number(value: float) -> Array:
        return np.array(value, np.float32)

    rows = op("Reshape", x, np.array([-1, BLOCK], np.int64))
    largest = op("ReduceMax", op("Abs", rows), np.array([1], np.int64), keepdims=1)
    codes = op("Min", op("Div", largest, number(LARGEST * float(unit))), number(LARGEST_SCALE))
    narrow = op("Cast", codes, to=FLOAT8_NUMBER)
    scale = op("Mul", op("Cast", narrow, to=CASTS["FLOAT"]), number(float(unit)))
    is_empty = op("Equal", scale, number(0))
    over = op("Div", rows, op("Where", is_empty, number(1), scale))
    over = op("Where", is_empty, number(0), over)
    size = op("Abs", over)
    upper = op("Where", op("Less", size, number(4)), number(1), number(2))
    step = op("Where", op("Less", size, number(2)), number(0.5), upper)
    rounded = op("Mul", op("Round", op("Div", over, step)), step)
    clipped = op("Clip", rounded, number(-LARGEST), number(LARGEST))
    real = op("Reshape", op("Mul", clipped, scale), op("Shape", x))
    for reader, _ in list(node.outputs[0].uses()):
        for last, index in list(reader.outputs[0].uses()):
            last.replace_input_with(index, real)


def _builder(model: ir.Model, node: ir.Node, used: Counter[str]) -> Builder:
    name = node.metadata_props.get(NAME_PROPERTY) or str(node.name)
    return Builder(model=model, before=node, name=name, used=used)
