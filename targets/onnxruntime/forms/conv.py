"""Convolutions: Conv in float, or QLinearConv once ONNX Runtime fuses the quantizers around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from advisor.errors import UnsupportedError
from advisor.passes.fx import argument
from advisor.passes.graph import WeightTable
from advisor.targets.manifest import LayerRecord
from advisor.targets.onnxruntime.forms.builder import Builder
from advisor.targets.onnxruntime.forms.form import Call, Form, Found, first_input
from advisor.targets.onnxruntime.forms.linear import integers_of
from advisor.targets.onnxruntime.forms.weights import (
    array_of,
    constant_array,
    find_float_weight,
    float_weight,
    names_of,
)

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch.fx import Node


def write(build: Builder, call: Call) -> tuple[ir.Value, ...]:
    """Conv of a float weight, or of a dequantized one when the layer is static.

    ONNX Runtime makes a QLinearConv of the latter where input and output are quantized. Narrow
    weights of the other schemes become floats at load.
    """
    if call.scheme.is_static:
        weight = _dequantized(build, call)
        integers_of(call.layer.name, call.inputs[0])
    else:
        weight = float_weight(build, call, call.inputs[1])
    return (
        build.node(
            "Conv",
            [batched_input(call), weight, call.bias],
            role="op",
            **attributes(call.node, call.layer.weight_shape),
        ),
    )


def _dequantized(build: Builder, call: Call) -> ir.Value:
    table = call.stored
    assert table.scale is not None  # integers have scales
    integers, scales = names_of(call)
    stored = build.constant(integers, array_of(table.values))
    scale = build.constant(f"{scales}s", array_of(table.scale).reshape(-1))
    return build.node("DequantizeLinear", [stored, scale], role="weight", axis=0)


def batched_input(call: Call) -> ir.Value:
    """The layer's input; torch convolves one without a batch dimension too, ONNX does not.

    Raises:
        UnsupportedError: there is no batch dimension.
    """
    x = call.inputs[0]
    if x.shape is not None and len(x.shape) != len(call.layer.weight_shape):
        raise UnsupportedError(
            f"{call.layer.name} convolves an input without a batch dimension; add one of size 1"
        )
    return x


def attributes(node: Node, weight_shape: tuple[int, ...]) -> dict[str, Any]:
    """ONNX attributes of an ATen convolution (input, weight, bias, stride, padding, dilation,
    groups); padding may be the word "same" or "valid"."""
    dimensions = len(weight_shape) - 2
    strides, dilations = (spread(argument(node, i), dimensions, 1) for i in (3, 5))
    kernel = weight_shape[2:]
    if argument(node, 4) == "same":
        totals = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
        begin = [total // 2 for total in totals]
        pads = [*begin, *(total - left for total, left in zip(totals, begin, strict=True))]
    else:  # "valid" is no padding
        padding = argument(node, 4)
        pads = spread(None if padding == "valid" else padding, dimensions, 0) * 2
    return {
        "kernel_shape": list(kernel),
        "strides": strides,
        "pads": pads,
        "dilations": dilations,
        "group": int(argument(node, 6) or 1),
    }


def spread(value: Any, dimensions: int, default: int) -> list[int]:
    """One number per dimension, from one for all, a list, or nothing."""
    if value is None:
        return [default] * dimensions
    given: list[Any] = [*value] if isinstance(value, (list, tuple)) else [value]
    numbers = [int(number) for number in given]
    return numbers * dimensions if len(numbers) == 1 else numbers


def read(node: ir.Node, layer: LayerRecord) -> Found | None:
    """What ``write`` wrote."""
    if node.op_type != "Conv" or node.inputs[1] is None:
        return None
    producer = node.inputs[1].producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return find_float_weight(node.inputs[1], layer.weight_shape)
    values, scale = (constant_array(value) for value in producer.inputs[:2])
    if values is None or scale is None:
        return None
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    is_static = source is not None and source.op_type == "DequantizeLinear"
    table = WeightTable(values=torch.as_tensor(values), scale=torch.as_tensor(scale))
    return Found(scheme="w8a8" if is_static else "w8", table=table)


def kernels(layer: LayerRecord) -> frozenset[str]:
    """Operators that compute the layer as planned."""
    return frozenset({"QLinearConv"}) if layer.scheme == "w8a8" else frozenset()


FORM: Final = Form(
    write=write, read=read, kernels=kernels, start=first_input, ends_in_integers=True
)
