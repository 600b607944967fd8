"""Weight tables as TFLite stores them, and back: order of the axes, four-bit packing, scales."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import torch

from advisor.errors import UnsupportedError
from advisor.formats import PerBlock, Scheme
from advisor.passes.graph import WeightTable
from advisor.targets.tflite.flatbuffer import FlatModel, blocks_of, schema

Array = np.ndarray[Any, Any]

FLOAT_SCHEMES: Final = {"FLOAT32": "fp32", "FLOAT16": "fp16"}
BITS: Final = {"INT8": 8, "INT4": 4}
STORED: Final = {"int8": "INT8", "int4": "INT4", "float16": "FLOAT16", "float32": "FLOAT32"}
"""Type of a weight tensor by the dtype in its scheme."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A weight as read from a file. scale: None for floats. block: inputs per scale, or 0."""

    dtype: str
    table: WeightTable
    block: int = 0

    @property
    def is_float(self) -> bool:
        """Whether it is no integers."""
        return self.table.scale is None


def add_weight(
    model: FlatModel,
    name: str,
    table: WeightTable,
    scheme: Scheme,
    order: tuple[int, ...],
    axis: int,
) -> int:
    """Store a table as a constant tensor; its index.

    order: axes of the torch weight as they are stored. axis: the stored one that scales belong to.
    The scales of blocks become a float16
    tensor of their own, ``<name>/scales``.

    Raises:
        UnsupportedError: TFLite has no such weights.
    """
    dtype = STORED.get(scheme.weight.dtype)
    if dtype is None or table.zero_point is not None:
        raise UnsupportedError(
            f"{name}: TFLite stores no {scheme.weight.dtype} weights"
            f"{'' if table.zero_point is None else ' with zero points'}; "
            f"choose a scheme with one of {', '.join(STORED)}"
        )
    values = _values(table).transpose(order)
    data = _pack(values) if dtype == "INT4" else np.ascontiguousarray(values).tobytes()
    quantization = None
    if table.scale is not None:
        scale = table.scale.detach().numpy()
        blocks = scheme.weight.granularity
        if isinstance(blocks, PerBlock):
            quantization = _blockwise(model, name, scale, blocks.size)
        else:
            quantization = per_axis(scale, axis=axis)
    return model.add_tensor(name, values.shape, dtype, data=data, quantization=quantization)


def read_weight(
    model: FlatModel, tensor: int, shape: tuple[int, ...], order: tuple[int, ...]
) -> Stored | None:
    """The table behind a constant tensor in torch layout, None when it is not one.

    shape: in torch layout; the file may have more axes of size 1. order: axes of that shape as they
    are stored. A tensor that is dequantized from a constant counts as that constant.
    """
    data = model.data(tensor)
    if data is None:
        maker = model.producers().get(tensor)
        if maker is None or model.code(maker) != "DEQUANTIZE":
            return None
        return read_weight(model, int(maker.inputs[0]), shape, order)
    dtype = model.dtype(tensor)
    stored, back = [shape[axis] for axis in order], np.argsort(order)
    if prod(model.shape(tensor)) != prod(shape):
        return None
    if dtype in FLOAT_SCHEMES:
        floats = np.frombuffer(data, np.float32 if dtype == "FLOAT32" else np.float16)
        torch_layout = torch.as_tensor(floats.reshape(stored).transpose(back).copy())
        return Stored(dtype=dtype, table=WeightTable(values=torch_layout))
    if dtype not in BITS:
        return None
    integers = _unpack(data, prod(shape)) if dtype == "INT4" else np.frombuffer(data, np.int8)
    scale, block = _read_scale(model, tensor)
    if scale is None:
        return None
    values = torch.as_tensor(integers.reshape(stored).transpose(back).copy())
    table = WeightTable(values=values, scale=torch.as_tensor(scale.copy()))
    return Stored(dtype=dtype, table=table, block=block)


def per_axis(scale: Array, *, axis: int, zero_point: int = 0) -> Any:
    """Quantization parameters: one scale, or one per index of ``axis``."""
    quantization = schema().QuantizationParametersT()
    quantization.scale = np.asarray(scale, np.float32).ravel()
    quantization.zeroPoint = np.full(quantization.scale.size, zero_point, np.int64)
    quantization.quantizedDimension = axis
    return quantization


def _blockwise(model: FlatModel, name: str, scale: Array, block: int) -> Any:
    """One scale per row and ``block`` inputs.

    XNNPACK rounds them to bfloat16; the plan's already are, and float16 must hold them.
    """
    halves = scale.astype(np.float16)
    if not np.array_equal(halves.astype(np.float32), scale):
        raise UnsupportedError(
            f"{name}: a block's scale {float(scale.max()):.3g} does not fit into the float16 that "
            "TFLite stores it in; plan this layer with one scale per channel"
        )
    quantization = schema().QuantizationParametersT()
    details = schema().BlockwiseQuantizationT()
    details.scales = model.add_tensor(
        f"{name}/scales", scale.shape, "FLOAT16", data=halves.tobytes()
    )
    details.zeroPoints = -1
    details.blockSize = block
    quantization.detailsType = schema().QuantizationDetails.BlockwiseQuantization
    quantization.details = details
    quantization.quantizedDimension = 0
    return quantization


def _read_scale(model: FlatModel, tensor: int) -> tuple[Array | None, int]:
    details = blocks_of(model.tensor(tensor))
    if details is not None:
        index = int(details.scales)
        data = model.data(index)
        if data is None:
            return None, 0
        halves = np.frombuffer(data, np.float16).reshape(model.shape(index))
        return halves.astype(np.float32), int(details.blockSize)
    quantization = model.tensor(tensor).quantization
    if quantization is None or quantization.scale is None or len(quantization.scale) == 0:
        return None, 0
    return np.asarray(quantization.scale, np.float32), 0


def _values(table: WeightTable) -> Array:
    return table.values.detach().cpu().numpy()


def _pack(values: Array) -> bytes:
    """Two integers per byte, the first in the low half; the last byte of an odd count is padded."""
    nibbles = np.ascontiguousarray(values).reshape(-1).view(np.uint8) & 15
    if nibbles.size % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return (nibbles[0::2] | (nibbles[1::2] << 4)).astype(np.uint8).tobytes()


def _unpack(data: bytes, count: int) -> Array:
    packed = np.frombuffer(data, np.uint8)
    nibbles = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count]
    return ((nibbles.astype(np.int16) ^ 8) - 8).astype(np.int8)
