"""Convolutions and transposed ones, with the weight as ``weights.py`` stores it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from advisor.targets.onnxruntime.forms.builder import Builder
from advisor.targets.onnxruntime.forms.conv import attributes, batched_input
from advisor.targets.onnxruntime.forms.conv_transpose import transposed_attributes
from advisor.targets.onnxruntime.forms.form import Call
from advisor.targets.tensorrt.forms.form import Form, read_weighted
from advisor.targets.tensorrt.forms.weights import (
    cast_back,
    cast_to,
    compute_kind,
    write_bias,
    write_weight,
)

if TYPE_CHECKING:
    import onnx_ir as ir


def write(build: Builder, call: Call) -> tuple[ir.Value, ...]:
    """Conv under the layer's scheme."""
    return (_write(build, call, "Conv", attributes(call.node, call.layer.weight_shape)),)


def write_transposed(build: Builder, call: Call) -> tuple[ir.Value, ...]:
    """ConvTranspose under the layer's scheme; float ones alone stay what they are when compiled."""
    return (_write(build, call, "ConvTranspose", transposed_attributes(call)),)


def _write(build: Builder, call: Call, operator: str, given: dict[str, Any]) -> ir.Value:
    kind = compute_kind(call.scheme)
    x = cast_to(build, batched_input(call), kind, role="input")
    weight, bias = write_weight(build, call, call.inputs[1]), write_bias(build, call)
    return cast_back(build, build.node(operator, [x, weight, bias], role="op", **given), kind)


FORM: Final = Form(write=write, read=read_weighted, operators=frozenset({"Conv"}))
TRANSPOSED: Final = Form(
    write=write_transposed, read=read_weighted, operators=frozenset({"ConvTranspose"})
)
