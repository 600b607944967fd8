"""Embeddings: Gather of a float table, its rows in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from advisor.passes.graph import WeightTable
from advisor.targets.manifest import LayerRecord
from advisor.targets.onnxruntime.forms.builder import Builder
from advisor.targets.onnxruntime.forms.form import Call, Found
from advisor.targets.tensorrt.forms.form import Form
from advisor.targets.tensorrt.forms.weights import (
    SCHEMES,
    cast_back,
    compute_kind,
    write_weight,
)
from advisor.targets.tensorrt.numbers import kind_of, stored_array, tensor_of

if TYPE_CHECKING:
    import onnx_ir as ir


def write(build: Builder, call: Call) -> tuple[ir.Value, ...]:
    """The rows of the table at the ids."""
    table = write_weight(build, call, call.inputs[0])
    rows = build.node("Gather", [table, call.inputs[1]], role="op")
    return (cast_back(build, rows, compute_kind(call.scheme)),)


def read(node: ir.Node, layer: LayerRecord) -> Found | None:
    """What ``write`` wrote."""
    values = stored_array(node.inputs[0])
    if values is None:
        return None
    kind = kind_of(node.inputs[0])
    table = WeightTable(values=tensor_of(values).reshape(*layer.weight_shape))
    return Found(scheme=SCHEMES.get(kind, kind.lower()), table=table)


FORM: Final = Form(write=write, read=read, operators=frozenset({"Gather"}))
