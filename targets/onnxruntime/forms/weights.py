"""Stored weights that become floats when a session loads, and how to recognise them.

ONNX Runtime folds Cast and Mul of constants at load, so that a layer of narrow weights runs at
the speed of float; a DequantizeLinear in their place would run at every call (it is kept for the
sake of integer kernels). Packed INT4 and INT2 tensors fold the same way (measured, 1.31.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from advisor.formats import PerBlock
from advisor.passes.graph import WeightTable
from advisor.targets.onnxruntime.forms.builder import Array, Builder
from advisor.targets.onnxruntime.forms.form import FLOAT_KINDS, Call, Found

if TYPE_CHECKING:
    import onnx_ir as ir

FLOAT: Final = 1
"""onnx.TensorProto.FLOAT."""

NARROW: Final = {"int4": "INT4", "int2": "INT2"}
BITS: Final = {"INT8": 8, "INT4": 4, "INT2": 2}


def array_of(tensor: torch.Tensor) -> Array:
    """A torch tensor as an array that shares its memory."""
    return tensor.detach().cpu().numpy()


def names_of(call: Call) -> tuple[str, str]:
    """Names of the stored integers and of their scales.

    Integers that an integer kernel reads are a constant of that layer alone, also where others
    read the same weight: where ONNX Runtime must make them uint8, it cannot open a file in which
    two kernels read one constant (measured, 1.31.1). Large ones are still stored once.
    """
    is_integer = call.scheme.activation is not None and call.layer.op != "embedding"
    owner = f".{call.layer.name}" if call.is_shared and is_integer else ""
    return f"{call.layer.weight}_quantized{owner}", f"{call.layer.weight}_scale"


def float_weight(build: Builder, call: Call, weight: ir.Value) -> ir.Value:
    """The layer's weight as float32, in the layer's shape, whatever it is stored as."""
    if call.scheme.weight.dtype == "float32":
        return weight
    table = call.stored
    integers, scales = names_of(call)
    if table.scale is None:
        stored = build.constant(f"{call.layer.weight}_float16", array_of(table.values))
        return build.node("Cast", [stored], role="weight", to=FLOAT)
    values = array_of(table.values)
    rows = values.reshape(values.shape[0], -1)
    fmt = call.scheme.weight
    if isinstance(fmt.granularity, PerBlock):
        values = rows.reshape(rows.shape[0], -1, fmt.granularity.size)
        scale = array_of(table.scale)[..., None]
        integers, scales = f"{integers}_split", f"{scales}_split"
    else:
        spread = [1] * values.ndim
        spread[call.layer.scale_axis] = -1
        scale = array_of(table.scale).reshape(spread)
    stored = build.constant(integers, values, NARROW.get(fmt.dtype, ""))
    cast = build.node("Cast", [stored], role="weight", to=FLOAT)
    real = build.node("Mul", [cast, build.constant(scales, scale)], role="weight")
    if values.shape == call.layer.weight_shape:
        return real
    shape = build.constant(
        f"{call.layer.weight}_shape", np.array(call.layer.weight_shape, dtype=np.int64)
    )
    return build.node("Reshape", [real, shape], role="weight")


def find_float_weight(value: ir.Value | None, shape: Sequence[int]) -> Found | None:
    """The table behind a weight input that ``float_weight`` made for a layer of that shape."""
    scale: Array | None = None
    while value is not None and not value.is_initializer():
        producer = value.producer()
        if producer is None:
            return None
        if producer.op_type == "Mul":
            scale = constant_array(producer.inputs[1])
        elif producer.op_type not in ("Cast", "Reshape", "Transpose"):
            return None
        value = producer.inputs[0]
    array = constant_array(value)
    if value is None or value.dtype is None or array is None:
        return None
    kind = value.dtype.name
    if scale is None:
        table = WeightTable(values=torch.as_tensor(array))
        return Found(scheme=FLOAT_KINDS.get(kind, kind), table=table)
    is_block = array.shape != tuple(shape)
    name = f"w{BITS.get(kind, 0)}" + (f"-g{array.shape[-1]}" if is_block else "")
    scales = scale.reshape(scale.shape[0], -1) if is_block else scale.reshape(-1)
    table = WeightTable(values=torch.as_tensor(array), scale=torch.as_tensor(scales))
    return Found(scheme=name, table=table)


def constant_array(value: ir.Value | None) -> Array | None:
    """The constant behind a value, narrow integers as int8, also through a Transpose."""
    if value is None:
        return None
    producer = value.producer()
    if producer is not None and producer.op_type == "Transpose":
        inner = constant_array(producer.inputs[0])
        return None if inner is None else np.ascontiguousarray(inner.T)
    if value.const_value is None:
        return None
    array = value.const_value.numpy()
    is_narrow = value.dtype is not None and value.dtype.name in ("INT4", "INT2")
    return np.array(array.astype(np.int8) if is_narrow else array)


def table_of(values: Array, scale: Array) -> WeightTable:
    """Integers and scales that were read from a file, as the plan has them."""
    return WeightTable(
        values=torch.as_tensor(np.ascontiguousarray(values)), scale=torch.as_tensor(scale)
    )


def pack(values: Array, bits: int) -> Array:
    """Signed integers (rows, K) as unsigned ones with the middle as zero point, packed in uint8.

    The lowest bits of a byte come first. MatMulNBits and GatherBlockQuantized read the same bytes,
    so that a table that an embedding and a linear layer share is stored once.
    """
    per_byte = 8 // bits
    shifted = values.astype(np.int16) + 2 ** (bits - 1)
    groups = shifted.reshape(values.shape[0], -1, per_byte) << (bits * np.arange(per_byte))
    packed: Array = groups.sum(-1).astype(np.uint8)
    return packed


def unpack(packed: Array, bits: int) -> Array:
    """The integers (rows, K) that ``pack`` packed, as int8."""
    per_byte = 8 // bits
    parts = packed[..., None] >> (bits * np.arange(per_byte)).astype(np.uint8)
    shifted = (parts & (2**bits - 1)).reshape(packed.shape[0], -1).astype(np.int16)
    values: Array = (shifted - 2 ** (bits - 1)).astype(np.int8)
    return values
