"""A weight as it is stored in a runtime's file, and what plan it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import torch

from advisor.passes.graph import WeightTable
from advisor.targets.manifest import LayerRecord

FLOATS: Final = {"fp32": "fp32", "fp16": "fp16"}
BITS: Final = {"int8": 8, "uint8": 8, "int4": 4, "uint4": 4, "int2": 2}
"""Schemes and bits by what elements are called in a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One constant as it is stored. dtype: the elements'; see ``FLOATS`` and ``BITS``.

    values: integers or indices (int8 or uint8, unpacked), or floats. scale: of the rank of
    values, one entry per run of elements that share it. offset: zero points of the same shape.
    table: (tables..., entries) for indices, whose own scale is table_scale.
    """

    values: torch.Tensor
    dtype: str
    scale: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    table: torch.Tensor | None = None
    table_scale: torch.Tensor | None = None
    table_dtype: str = ""

    def expand(self) -> torch.Tensor:
        """The numbers that it stands for, float32."""
        if self.table is not None:
            return self._look_up(self.table)
        real = self.values.to(torch.float32)
        if self.scale is None:
            return real
        if self.offset is not None:
            real = real - _widen(self.offset.to(torch.float32), real.shape)
        return real * _widen(self.scale.to(torch.float32), real.shape)

    def _look_up(self, table: torch.Tensor) -> torch.Tensor:
        entries = table.to(torch.float32)
        if self.table_scale is not None:
            entries = entries * _widen(self.table_scale.to(torch.float32), entries.shape)
        shape = (*self.values.shape, entries.shape[-1])
        wide = _widen(entries, shape) if entries.ndim == len(shape) else entries.expand(shape)
        return torch.gather(wide, -1, self.values.to(torch.int64).unsqueeze(-1)).squeeze(-1)


def table_of(weight: Weight, shape: Sequence[int]) -> WeightTable:
    """The stored weight as a plan holds it: torch layout, scales without empty axes."""
    values = weight.values.reshape(tuple(shape))
    if weight.table is not None:
        table = weight.table.reshape(-1, weight.table.shape[-1])
        is_integer = not table.is_floating_point()
        scale = None
        if weight.table_scale is not None:
            scale = weight.table_scale.to(torch.float32).reshape(-1)
        return WeightTable(
            values=values, table=table if is_integer else table.to(torch.float32), scale=scale
        )
    if weight.scale is None:
        return WeightTable(values=values)
    scale = weight.scale.to(torch.float32)
    wide = [axis for axis, size in enumerate(scale.shape) if size > 1]
    if len(wide) < 2 and not _block(weight):
        scale = scale.reshape(-1) if wide else scale.reshape(())
    offset = None if weight.offset is None else weight.offset.reshape(scale.shape)
    return WeightTable(values=values, scale=scale, zero_point=offset)


def _block(weight: Weight) -> int:
    """Inputs that share a scale; 0 where all of an output do."""
    if weight.scale is None or weight.scale.ndim < 2 or weight.scale.shape[1] == 1:
        return 0
    return weight.values.shape[1] // weight.scale.shape[1]


def scheme_of(weight: Weight, *, is_static: bool) -> str:
    """Name of the scheme that is stored. is_static: whether the layer reads static integers."""
    if weight.dtype in FLOATS and weight.table is None:
        return FLOATS[weight.dtype]
    if weight.table is not None:
        bits = int(weight.dtype.removeprefix("uint"))
        tables = weight.table.numel() // weight.table.shape[-1]
        group = f"-c{weight.values.shape[0] // tables}" if tables > 1 else ""
        return f"lut{bits}{group}{'-i8' if weight.table_dtype == 'int8' else ''}"
    block = _block(weight)
    name = f"w{BITS[weight.dtype]}{'a8' if is_static else ''}"
    return f"{name}-g{block}" if block else name


def as_planned(found: str, layer: LayerRecord) -> str:
    """The planned scheme where a run is a whole row, or a group all outputs.

    One scale or table is what the package has then, under either name.
    """
    outputs, *inputs = layer.weight_shape
    names = {f"{found}-g{prod(inputs)}", f"{found}-c{outputs}"}
    return layer.scheme if layer.scheme in names else found


def pack_bits(indices: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Indices in as few bytes as they fit, the lowest bits first."""
    flags = (indices.reshape(-1, 1) >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(flags.astype(np.uint8).reshape(-1), bitorder="little")


def unpack_bits(packed: np.ndarray[Any, Any], bits: int, count: int) -> np.ndarray[Any, Any]:
    """Indices from bytes, the lowest bits first."""
    stream = np.unpackbits(packed.reshape(-1).view(np.uint8), bitorder="little")[: count * bits]
    places = (1 << np.arange(bits)).astype(np.uint8)
    indices: np.ndarray[Any, Any] = (stream.reshape(count, bits) * places).sum(1, dtype=np.uint8)
    return indices


def _widen(part: torch.Tensor, shape: tuple[int, ...] | torch.Size) -> torch.Tensor:
    """Repeat every entry along each axis as often as it takes."""
    for axis, (have, want) in enumerate(zip(part.shape, shape, strict=True)):
        if have not in (1, want):
            part = part.repeat_interleave(want // have, dim=axis)
    return part.expand(shape)
