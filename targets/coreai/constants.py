"""Constants of a Core AI program: numbers in, and numbers read back, bit by bit.

Integers narrower than a byte are packed, the lowest bits first. Large constants are resources,
whose names are part of the file: given here, so that the same plan gives the same bytes. Those that
the converter makes are named after their place in memory.
"""

from __future__ import annotations

import re
from math import prod
from typing import Any, Final

import numpy as np
import torch

from advisor.targets.coreai.packages import load
from advisor.targets.storedweight import pack_bits, unpack_bits

Array = np.ndarray[Any, Any]

SMALL_BYTES: Final = 64
"""Largest constant that stands in the program itself, where its passes can look into it."""

RESOURCE: Final = re.compile(r"dense_resource<([^>]*)>")
BLOB: Final = re.compile(r'"0x([0-9A-Fa-f]*)"')
HEADER_DIGITS: Final = 8
"""Hexadecimal digits before a resource's own bytes: its alignment."""

FLOATS: Final = {"float32": "f32", "float16": "f16"}
INTEGER: Final = re.compile(r"(u?)int(\d+)")


def constant(values: Array, dtype: str, name: str) -> Any:
    """A value of the program being built; see ``constant_attribute``."""
    dialect = load("coreai._compiler.dialects.coreai")
    return dialect.ConstantOp(value=constant_attribute(values, dtype, name)).result


def constant_attribute(values: Array, dtype: str, name: str) -> Any:
    """What a constant of a program holds.

    values: of ``dtype``, integers in whole bytes. dtype: "float32", "float16", "int8", "uint4" ...
    name: of the resource that a large constant becomes; each once in a program.
    """
    ir = load("coreai._compiler.ir")
    kind = ir.RankedTensorType.get(list(values.shape), _element_type(ir, dtype))
    match = INTEGER.fullmatch(dtype)
    bits = int(match[2]) if match else 8 * values.dtype.itemsize
    is_packed = bits % 8 != 0
    data = pack_bits(values.astype(np.uint8), bits) if is_packed else np.ascontiguousarray(values)
    if not is_packed and data.nbytes <= SMALL_BYTES:
        return ir.DenseElementsAttr.get(data, type=kind)
    flat = data.reshape(-1).view(np.uint8)
    flat.flags.writeable = False
    return ir.DenseResourceElementsAttr.get_from_buffer(flat, name, kind)


def zeros(shape: tuple[int, ...], dtype: str) -> Any:
    """A constant of nothing but zeros, which a program stores once."""
    ir = load("coreai._compiler.ir")
    element = _element_type(ir, dtype)
    zero = ir.FloatAttr.get(element, 0.0) if dtype in FLOATS else ir.IntegerAttr.get(element, 0)
    kind = ir.RankedTensorType.get(list(shape), element)
    made = ir.DenseElementsAttr.get_splat(kind, zero)
    return load("coreai._compiler.dialects.coreai").ConstantOp(value=made).result


def _element_type(ir: Any, dtype: str) -> Any:
    if dtype in FLOATS:
        return ir.F32Type.get() if dtype == "float32" else ir.F16Type.get()
    match = INTEGER.fullmatch(dtype)
    if match is None:
        raise ValueError(f"no element type for {dtype!r}")
    make = ir.IntegerType.get_unsigned if match[1] else ir.IntegerType.get_signed
    return make(int(match[2]))


def dtype_of(value: Any) -> str:
    """What the elements of a value are called here: "float32", "int4", ...; "" when unknown."""
    name = str(value.type.element_type)
    for known, short in FLOATS.items():
        if name == short:
            return known
    match = re.fullmatch(r"([su])i(\d+)", name)
    return f"{'u' if match[1] == 'u' else ''}int{match[2]}" if match else ""


def read_constant(op: Any) -> torch.Tensor:
    """The numbers of a constant, integers in int8 or uint8 where they are narrower.

    Raises:
        ValueError: elements of a kind that this package does not write.
    """
    value = op.results[0]
    shape, dtype = tuple(value.type.shape), dtype_of(value)
    if not dtype:
        raise ValueError(f"a constant of {value.type.element_type}")
    held = op.attributes["value"]
    match = INTEGER.fullmatch(dtype)
    bits = int(match[2]) if match else 8
    if is_resource(held):
        return torch.as_tensor(_from_bytes(_resource_bytes(op), shape, dtype))
    if bits % 8:  # asking it for a buffer ends the process
        plain = np.uint8 if match and match[1] else np.int8
        integer = load("coreai._compiler.ir").IntegerAttr
        count = prod(shape)
        numbers = (
            [integer(held.get_splat_value()).value] * count
            if held.is_splat
            else [held[index] for index in range(count)]
        )
        return torch.as_tensor(np.array(numbers, dtype=plain).reshape(shape))
    return torch.as_tensor(np.array(held).reshape(shape))


def is_resource(held: Any) -> bool:
    """Whether a constant's attribute stands for a resource."""
    return bool(load("coreai._compiler.ir").DenseResourceElementsAttr.isinstance(held))


def resource_name(held: Any) -> str:
    """Name of the resource that an attribute stands for; "" where it stands for itself."""
    match = RESOURCE.match(str(held)) if is_resource(held) else None
    return match[1] if match else ""


def _from_bytes(data: bytes, shape: tuple[int, ...], dtype: str) -> Array:
    match = INTEGER.fullmatch(dtype)
    bits = int(match[2]) if match else 8
    if bits % 8 == 0:
        return np.frombuffer(data, dtype=np.dtype(dtype)).reshape(shape).copy()
    found = unpack_bits(np.frombuffer(data, dtype=np.uint8), bits, prod(shape))
    if match and match[1]:
        return found.reshape(shape)
    sign = 1 << (bits - 1)
    return ((found.astype(np.int8) ^ sign) - sign).reshape(shape)


def _resource_bytes(op: Any) -> bytes:
    """The bytes behind a constant: only the printed form of a program has them."""
    ir = load("coreai._compiler.ir")
    with op.context, ir.Location.unknown():
        alone = ir.Module.create()
        with ir.InsertionPoint(alone.body):
            op.operation.clone()
        text = alone.operation.get_asm()
    found = BLOB.search(text)
    return bytes.fromhex(found[1][HEADER_DIGITS:]) if found else b""
