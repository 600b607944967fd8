"""Products of two activations, as in attention.

| scheme | operator |
|---|---|
| fp32 | MatMul |
| a8a8 | MatMulIntegerToFloat of both operands' integers |

The integer operator is written directly: QuantizeLinear and DequantizeLinear around a MatMul fuse
into it too, but ONNX Runtime then turns an int8 second operand into uint8 in some graphs, which is
slower (measured, 1.31.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from advisor.targets.manifest import LayerRecord
from advisor.targets.onnxruntime.forms.builder import Builder
from advisor.targets.onnxruntime.forms.form import Call, Form, Found
from advisor.targets.onnxruntime.forms.linear import integers_of
from advisor.targets.onnxruntime.rewrite import before_views

if TYPE_CHECKING:
    import onnx_ir as ir

INTEGER_OPERATOR: Final = "MatMulIntegerToFloat"


def write(build: Builder, call: Call) -> tuple[ir.Value, ...]:
    """The product in floats, or of the integers of both operands."""
    first, second = call.inputs
    if not call.scheme.is_static:
        return (build.node("MatMul", [first, second], role="op"),)
    integers, step, zero = integers_of(call.layer.name, first)
    others, other_step, other_zero = integers_of(call.layer.name, second)
    return (
        build.node(
            INTEGER_OPERATOR,
            [integers, others, step, other_step, zero, other_zero],
            role="op",
        ),
    )


def read(node: ir.Node, _layer: LayerRecord) -> Found | None:
    """What ``write`` wrote: a8a8 only with the scales and zero points of the quantizers before."""
    if node.op_type == "MatMul":
        return Found(scheme="fp32")
    if node.op_type != INTEGER_OPERATOR:
        return None
    values = node.inputs
    for index, (step, zero) in enumerate(((2, 4), (3, 5))):
        operand = values[index]
        producer = None if operand is None else before_views(operand)[0].producer()
        if producer is None or producer.op_type != "QuantizeLinear":
            return None
        if producer.inputs[1] is not values[step] or producer.inputs[2] is not values[zero]:
            return None
    return Found(scheme="a8a8")


def kernels(layer: LayerRecord) -> frozenset[str]:
    """Operators that compute the product as planned."""
    return frozenset({INTEGER_OPERATOR}) if layer.scheme == "a8a8" else frozenset()


def _operands(node: ir.Node, _layer: LayerRecord) -> tuple[ir.Value, ...]:
    return tuple(value for value in node.inputs[:2] if value is not None)


FORM: Final = Form(write=write, read=read, kernels=kernels, start=_operands)
