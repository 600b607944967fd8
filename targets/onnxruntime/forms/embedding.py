"""Embeddings: the rows that are looked up are turned into floats, not the table.

| scheme | operators |
|---|---|
| fp32, fp16 | Gather, Cast |
| w8, w8-g*, w8a8, w8a8-dynamic | Gather of integers and of scales, DequantizeLinear |
| w4-g*, w4a8-dynamic-g*, w2-g* | GatherBlockQuantized |

Each is stored in the bytes that a linear layer of the same weight and scheme has. Of a scheme with
activations, which a head that reads the table may have, a table has the weight alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from advisor.errors import UnsupportedError
from advisor.formats import PerBlock
from advisor.passes.graph import WeightTable
from advisor.targets.manifest import LayerRecord
from advisor.targets.onnxruntime.forms.builder import Array, Builder
from advisor.targets.onnxruntime.forms.form import FLOAT_KINDS, Call, Form, Found, integer
from advisor.targets.onnxruntime.forms.linear import BLOCK_BITS
from advisor.targets.onnxruntime.forms.weights import (
    FLOAT,
    array_of,
    constant_array,
    names_of,
    pack,
    table_of,
    unpack,
)
from advisor.targets.onnxruntime.reach import reads_inputs

if TYPE_CHECKING:
    import onnx_ir as ir

SMALLEST_BLOCK: Final = 16
"""GatherBlockQuantized wants a power of two from 16 up (checked by its shape inference)."""


def write(build: Builder, call: Call) -> tuple[ir.Value, ...]:
    """The rows of the table at the ids, as floats."""
    import onnx_ir as ir

    weight, ids = call.inputs[:2]
    if call.scheme.weight.dtype == "float32":
        return (build.node("Gather", [weight, ids], role="op"),)
    table = call.stored
    if table.scale is None:
        stored = build.constant(f"{call.layer.weight}_float16", array_of(table.values))
        rows = build.node("Gather", [stored, ids], role="weight")
        return (build.node("Cast", [rows], role="op", to=FLOAT),)
    integers, scales = names_of(call)
    values, scale = array_of(table.values), array_of(table.scale)
    if call.scheme.weight.dtype != "int8":
        return (_blocks(build, call, values, scale),)
    scale = scale.reshape(values.shape[0], -1)
    stored = build.constant(integers, values)
    column = build.constant(f"{scales}_column", scale)
    rows = build.node("Gather", [stored, ids], role="weight")
    steps = build.node("Gather", [column, ids], role="weight")
    rank = 1 if ids.shape is None else len(ids.shape)
    block = values.shape[1] // scale.shape[1]
    inputs: list[ir.Value | None] = [rows, steps]
    if not reads_inputs(ids):
        # Rows at known places become a constant, which processors without VNNI want as uint8; ONNX
        # Runtime 1.31 then adds a zero point of the wrong rank where there is none.
        sizes = build.node("Shape", [steps], role="weight")
        zero = ir.tensor(np.zeros(1, np.int8))
        inputs.append(build.node("ConstantOfShape", [sizes], role="weight", value=zero))
    dequantized = build.node("DequantizeLinear", inputs, role="op", axis=rank, block_size=block)
    return (dequantized,)


def _blocks(build: Builder, call: Call, values: Array, scale: Array) -> ir.Value:
    fmt, width = call.scheme.weight, values.shape[1]
    block = fmt.granularity.size if isinstance(fmt.granularity, PerBlock) else width
    bits = BLOCK_BITS[fmt.dtype]
    if block < SMALLEST_BLOCK or block & (block - 1):
        raise UnsupportedError(
            f"{call.layer.name}: ONNX Runtime reads embeddings in blocks of a power of two from "
            f"{SMALLEST_BLOCK} up, not {block}; use a -g32, -g64 or -g128 scheme, or w8"
        )
    integers, scales = names_of(call)
    stored = build.constant(f"{integers}_rows", pack(values, bits))
    steps = build.constant(scales, scale)
    return build.node(
        "GatherBlockQuantized",
        [stored, call.inputs[1], steps],
        role="op",
        gather_axis=0,
        quantize_axis=1,
        block_size=block,
        bits=bits,
    )


def read(node: ir.Node, _layer: LayerRecord) -> Found | None:
    """What ``write`` wrote."""
    if node.op_type == "GatherBlockQuantized":
        packed, scale = constant_array(node.inputs[0]), constant_array(node.inputs[2])
        if packed is None or scale is None:
            return None
        bits = integer(node, "bits")
        name = f"w{bits}-g{integer(node, 'block_size')}"
        return Found(scheme=name, table=table_of(unpack(packed, bits), scale))
    if node.op_type == "DequantizeLinear":
        values, scale = _gathered(node.inputs[0]), _gathered(node.inputs[1])
        if values is None or scale is None:
            return None
        if scale.shape[1] == 1:
            return Found(scheme="w8", table=table_of(values, scale.reshape(-1)))
        name = f"w8-g{values.shape[1] // scale.shape[1]}"
        return Found(scheme=name, table=table_of(values, scale))
    values = _gathered(node.inputs[0] if node.op_type == "Cast" else node.outputs[0])
    if values is None:
        return None
    kinds = {"float32": "FLOAT", "float16": "FLOAT16"}
    kind = FLOAT_KINDS.get(kinds.get(str(values.dtype), ""), str(values.dtype))
    return Found(scheme=kind, table=WeightTable(values=torch.as_tensor(values)))


def _gathered(value: ir.Value | None) -> Array | None:
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "Gather":
        return None
    return constant_array(producer.inputs[0])


def kernels(layer: LayerRecord) -> frozenset[str]:
    """Operators that compute the layer as planned."""
    if layer.scheme.startswith("w8"):
        return frozenset({"DequantizeLinear"})
    return frozenset({"GatherBlockQuantized"}) if layer.scheme.startswith("w") else frozenset()


def _ids(node: ir.Node, _layer: LayerRecord) -> tuple[ir.Value, ...]:
    """What the layer's Gather, however it is spelled, reads as indices."""
    while node.op_type not in ("Gather", "GatherBlockQuantized"):
        source = node.inputs[0]
        producer = None if source is None else source.producer()
        if producer is None:
            return ()
        node = producer
    ids = node.inputs[1]
    return () if ids is None else (ids,)


FORM: Final = Form(write=write, read=read, kernels=kernels, start=_ids)
