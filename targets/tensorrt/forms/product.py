"""Products of two activations, as in attention.

Two products with a Softmax between them become one kernel of attention in float16, also when the
Softmax is in float32 between casts (measured, TensorRT-RTX 1.7.1.116).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from advisor.targets.manifest import LayerRecord
from advisor.targets.onnxruntime.forms.builder import Builder
from advisor.targets.onnxruntime.forms.form import Call, Found
from advisor.targets.tensorrt.forms.form import Form, quantized_input
from advisor.targets.tensorrt.forms.weights import SCHEMES, cast_back, cast_to, compute_kind
from advisor.targets.tensorrt.numbers import kind_of

if TYPE_CHECKING:
    import onnx_ir as ir


def write(build: Builder, call: Call) -> tuple[ir.Value, ...]:
    """The product in the scheme's dtype."""
    kind = compute_kind(call.scheme)
    operands = [cast_to(build, value, kind, role="input") for value in call.inputs[:2]]
    return (cast_back(build, build.node("MatMul", [*operands], role="op"), kind),)


def read(node: ir.Node, _layer: LayerRecord) -> Found | None:
    """What ``write`` wrote."""
    kinds = {quantized_input(value) for value in node.inputs}
    if kinds == {""}:
        computed = {_float_kind(value) for value in node.inputs}
        return Found(scheme=SCHEMES.get(computed.pop(), "fp32") if len(computed) == 1 else "mixed")
    names = {"INT8": "a8a8", "FLOAT8E4M3FN": "fp8"}
    return Found(scheme=names.get(kinds.pop(), "mixed") if len(kinds) == 1 else "mixed")


def _float_kind(value: ir.Value | None) -> str:
    """The dtype of an operand, through views; float32 where the file does not say."""
    return kind_of(value) or "FLOAT"


FORM: Final = Form(write=write, read=read, operators=frozenset({"MatMul"}))
