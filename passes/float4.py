"""Four-bit floats (E2M1) in blocks, as NVFP4 has them: a float8 (E4M3) scale per block of 16, and
one unit for all of them (https://docs.nvidia.com/cuda/cublas, "Block scaling for FP8 and FP4").

Every number of E2M1 is one of E4M3 too, so that tensors of float8 hold them, one element a byte.
"""

from __future__ import annotations

from typing import Final

import torch

LARGEST: Final = 6.0
"""Largest number of E2M1, whose others are 0, 0.5, 1, 1.5, 2, 3 and 4."""

LARGEST_SCALE: Final = 448.0
"""Largest number of E4M3."""

ACTIVATION_UNIT: Final = 2.0**-3
"""Unit of the scales of activations. With it blocks are scaled exactly to three bits where their
largest number is between 0.012 and 336: smaller ones lose bits, and larger ones saturate."""

HOLDER: Final = torch.float8_e4m3fn


def round_to_float4(x: torch.Tensor) -> torch.Tensor:
    """The nearest numbers of E2M1, ties to the even mantissa, saturated; still float32.

    Numbers are 0.5 apart below 2, 1 apart below 4, and 2 apart above.
    """
    size = x.abs()
    step = torch.where(size < 2.0, 0.5, torch.where(size < 4.0, 1.0, 2.0))
    return ((x / step).round() * step).clamp(-LARGEST, LARGEST)


def block_scales(largest: torch.Tensor, unit: float) -> torch.Tensor:
    """Scales of blocks with these largest magnitudes: multiples of ``unit`` by E4M3 numbers."""
    codes = (largest / (LARGEST * unit)).clamp_max(LARGEST_SCALE)
    return codes.to(HOLDER).to(torch.float32) * unit


def divide(rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(blocks, elements) over one scale per block; a block whose scale is 0 becomes zeros."""
    return torch.where(scale > 0, rows / torch.where(scale > 0, scale, 1.0), 0.0)


def unit_of(largest: torch.Tensor) -> float:
    """The least power of two with which E4M3 holds the scales of blocks with these magnitudes."""
    most = float(largest.max()) / (LARGEST * LARGEST_SCALE)
    return 2.0 ** float(torch.tensor(most).log2().ceil()) if most > 0 else 1.0


def split_scales(scale: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Scales as E4M3 numbers and their unit, a power of two, whose products they are exactly."""
    unit = unit_of(scale * LARGEST)
    return (scale / unit).to(HOLDER), unit
