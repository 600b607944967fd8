"""The integer grid of a format and the rows that share a scale."""

from __future__ import annotations

from math import prod
from typing import Final

import torch
import torch.nn.functional as F

from advisor.errors import UsageError
from advisor.formats import PerBlock, PerChannel, PerGroup, PerTensor, TensorFormat
from advisor.passes.graph import WeightTable

LEAST_COARSE: Final = 2.0**-17
"""Smallest scale that is rounded to eight bits: below it, float16 (in which runtimes store such
scales) has fewer. Weights of blocks that small are about zero either way."""


def integer_range(fmt: TensorFormat) -> tuple[int, int]:
    """Smallest and largest integer.

    8 bits use -127..127, since -128 breaks the symmetry that some int8 kernels rely on; narrower
    formats use every code, because one in 16 (or 4) is too many to waste.
    """
    half = 2 ** (fmt.bits - 1)
    return (1 - half, half - 1) if fmt.bits == 8 else (-half, half - 1)


def to_rows(weight: torch.Tensor, fmt: TensorFormat) -> torch.Tensor:
    """The weight as (scales, elements): every row shares one scale.

    The last block of each output is filled up with zeros when the size does not divide the inputs.
    """
    match fmt.granularity:
        case PerTensor():
            return weight.reshape(1, -1)
        case PerChannel(axis=axis):
            return weight.movedim(axis, 0).reshape(weight.shape[axis], -1)
        case PerBlock(size=size):
            flat = weight.reshape(weight.shape[0], -1)
            missing = -flat.shape[1] % size
            padded = F.pad(flat, (0, missing)) if missing else flat  # pad always copies
            return padded.reshape(-1, size)
        case PerGroup():
            raise _no_scales(fmt)


def from_rows(
    integers: torch.Tensor, scale: torch.Tensor, shape: torch.Size, fmt: TensorFormat
) -> WeightTable:
    """Undo ``to_rows``: integers of (scales, elements) and one scale per row.

    Block formats of more than two dimensions stay flattened to (out, rest), as they are stored.
    """
    values = integers.to(torch.int8)
    match fmt.granularity:
        case PerTensor():
            return WeightTable(values=values.reshape(shape), scale=scale.reshape(()))
        case PerChannel(axis=axis):
            moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
            return WeightTable(
                values=values.reshape(moved).movedim(0, axis).contiguous(), scale=scale
            )
        case PerBlock():
            rows, inputs = shape[0], prod(shape[1:])
            flat = values.reshape(rows, -1)[:, :inputs].contiguous()
            return WeightTable(values=flat, scale=scale.reshape(rows, -1))
        case PerGroup():
            raise _no_scales(fmt)


def _no_scales(fmt: TensorFormat) -> UsageError:
    return UsageError(f"groups share tables, not scales, so {fmt.dtype} cannot have them")


def round_to_coarse_scales(
    weight: torch.Tensor, table: WeightTable, fmt: TensorFormat, dtype: torch.dtype
) -> WeightTable:
    """The nearest integers to the weight once every scale of ``table`` is rounded to ``dtype``."""
    assert table.scale is not None  # a format with blocks has one per block
    scale = table.scale.to(dtype).to(torch.float32).clamp_min(LEAST_COARSE).reshape(-1)
    rows = to_rows(weight, fmt)
    return from_rows(quantize_rows(rows, scale, integer_range(fmt)), scale, weight.shape, fmt)


def safe_scale(scale: torch.Tensor) -> torch.Tensor:
    """Scales that can be divided by: a row of zeros gets 1."""
    tiny = torch.finfo(torch.float32).tiny
    return torch.where(scale > tiny, scale, torch.ones_like(scale))


def quantize_rows(rows: torch.Tensor, scale: torch.Tensor, bounds: tuple[int, int]) -> torch.Tensor:
    """Nearest integers (half to even, as every runtime does), saturated; still float32."""
    return (rows / scale[:, None]).round_().clamp_(*bounds)
