"""The same model in operators that ONNX Runtime's CPU provider has.

It has none of bfloat16. There an operator of bfloat16 becomes that of float32 on the same rounded
numbers, its result rounded to bfloat16: what tensor cores do, which add in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from advisor.targets.tensorrt.forms.weights import CASTS
from advisor.targets.tensorrt.numbers import kind_of
from advisor.targets.tensorrt.widened import widen_float4

if TYPE_CHECKING:
    import onnx_ir as ir

MISSING: Final = "BFLOAT16"


def make_portable(model: ir.Model) -> ir.Model:
    """A copy that ONNX Runtime can run; names stay what they are."""
    import onnx_ir as ir

    model = model.clone()
    widen_float4(model)
    wide = ir.TensorType(ir.DataType.FLOAT)
    for value in model.graph.initializers.values():
        if kind_of(value) == MISSING and value.const_value is not None:
            array = value.const_value.numpy().astype(np.float32)
            value.const_value = ir.tensor(array, name=value.name)
            value.type = wide
    narrow: set[int] = set()
    for node in list(model.graph):
        reads = any(id(value) in narrow for value in node.inputs)
        is_cast = node.op_type == "Cast"
        casts_to = node.attributes["to"].as_int() if is_cast else 0
        if casts_to == CASTS[MISSING]:
            _round(model, node, node.outputs[0], narrow)
        elif is_cast or not (reads or kind_of(node.outputs[0]) == MISSING):
            continue
        else:
            output = node.outputs[0]
            output.type = wide
            rounded = ir.node(
                "Cast",
                [output],
                {"to": CASTS[MISSING]},
                name=f"{node.name}/rounded",
                metadata_props=dict(node.metadata_props),
            )
            rounded.outputs[0].name = f"{output.name}/rounded"
            _move_readers(output, rounded.outputs[0], rounded)
            model.graph.insert_after(node, rounded)
            _round(model, rounded, rounded.outputs[0], narrow)
    return model


def _round(model: ir.Model, node: ir.Node, value: ir.Value, narrow: set[int]) -> None:
    """Let readers of a bfloat16 value read it as float32."""
    import onnx_ir as ir

    back = ir.node(
        "Cast",
        [value],
        {"to": CASTS["FLOAT"]},
        name=f"{node.name}/widened",
        metadata_props=dict(node.metadata_props),
    )
    back.outputs[0].name = f"{value.name}/widened"
    back.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    back.outputs[0].shape = value.shape
    _move_readers(value, back.outputs[0], back)
    model.graph.insert_after(node, back)
    narrow.add(id(back.outputs[0]))


def _move_readers(old: ir.Value, new: ir.Value, keep: ir.Node) -> None:
    for reader, index in list(old.uses()):
        if reader is not keep:
            reader.replace_input_with(index, new)
