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
from advisor.targets.tensorrt.forms.weights import CASTS, VIEWS, cast_back, cast_to, compute_kind
from advisor.targets.tensorrt.numbers import kind_of

if TYPE_CHECKING:
    import onnx_ir as ir


KINDS: Final = {number: kind for kind, number in CASTS.items()}
SCHEMES: Final = {
    "FLOAT": "fp32",
    "FLOAT16": "a16a16",
    "INT8": "a8a8",
    "FLOAT8E4M3FN": "a8a8-fp8",
}
"""By ONNX's name of what both operands are."""


def write(build: Builder, call: Call) -> tuple[ir.Value, ...]:
    """The product in the scheme's dtype."""
    kind = compute_kind(call.scheme)
    operands = [cast_to(build, value, kind, role="input") for value in call.inputs[:2]]
    return (cast_back(build, build.node("MatMul", [*operands], role="op"), kind),)


def read(node: ir.Node, _layer: LayerRecord) -> Found | None:
    """What ``write`` wrote."""
    kinds = {quantized_input(value) or _float_kind(value) for value in node.inputs}
    return Found(scheme=SCHEMES.get(kinds.pop(), "unknown") if len(kinds) == 1 else "mixed")


def _float_kind(value: ir.Value | None) -> str:
    """The dtype of an operand: a cast to it may be all that a file says, and views hide that."""
    while value is not None and not kind_of(value) and (producer := value.producer()) is not None:
        if producer.op_type == "Cast":
            return KINDS.get(producer.attributes["to"].as_int(), "")
        if producer.op_type not in VIEWS:
            break
        value = producer.inputs[0]
    return kind_of(value) or "FLOAT"


FORM: Final = Form(write=write, read=read, operators=frozenset({"MatMul"}))
