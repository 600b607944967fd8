"""Transposed convolutions: ConvTranspose in float, whatever the weight is stored as.

ONNX Runtime's CPU provider has no integer kernel for them. The same sums as an integer convolution
to stride x stride as many channels and a DepthToSpace were up to twice as slow as float ones for
64 to 128 channels, and twice as fast from 256 channels on (measured, 1.31.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from advisor.passes.fx import argument
from advisor.targets.manifest import LayerRecord
from advisor.targets.onnxruntime.forms.builder import Builder
from advisor.targets.onnxruntime.forms.conv import batched_input, spread
from advisor.targets.onnxruntime.forms.form import Call, Form, Found, first_input
from advisor.targets.onnxruntime.forms.weights import find_float_weight, float_weight

if TYPE_CHECKING:
    import onnx_ir as ir


def write(build: Builder, call: Call) -> tuple[ir.Value, ...]:
    """ConvTranspose of a float weight."""
    weight = float_weight(build, call, call.inputs[1])
    inputs = [batched_input(call), weight, call.bias]
    return (build.node("ConvTranspose", inputs, role="op", **transposed_attributes(call)),)


def transposed_attributes(call: Call) -> dict[str, Any]:
    """ONNX attributes of an ATen transposed convolution (input, weight, bias, stride, padding,
    output padding, groups, dilation)."""
    kernel = call.layer.weight_shape[2:]
    dimensions = len(kernel)
    strides, dilations = (spread(argument(call.node, i), dimensions, 1) for i in (3, 7))
    padding, extra = (spread(argument(call.node, i), dimensions, 0) for i in (4, 5))
    return {
        "kernel_shape": list(kernel),
        "strides": strides,
        "pads": padding * 2,
        "output_padding": extra,
        "dilations": dilations,
        "group": call.layer.groups,
    }


def read(node: ir.Node, layer: LayerRecord) -> Found | None:
    """What ``write`` wrote."""
    is_ours = node.op_type == "ConvTranspose"
    return find_float_weight(node.inputs[1], layer.weight_shape) if is_ours else None


def kernels(_layer: LayerRecord) -> frozenset[str]:
    """The one operator there is."""
    return frozenset({"ConvTranspose"})


FORM: Final = Form(write=write, read=read, kernels=kernels, start=first_input)
