"""Scales of least squared error: clip the tails when that makes the bulk more exact."""

from __future__ import annotations

from typing import Final

import torch

from advisor.formats import TensorFormat
from advisor.passes.graph import WeightTable
from advisor.passes.rounding.grid import (
    from_rows,
    integer_range,
    quantize_rows,
    safe_scale,
    to_rows,
)

STEPS: Final = 32
LOWEST: Final = {8: 0.85, 4: 0.45, 2: 0.25}
"""Smallest scale tried, as a share of the round-to-nearest scale, by bits."""


def round_by_mse(weight: torch.Tensor, fmt: TensorFormat) -> WeightTable:
    """For every row the scale, among 32 shrunk ones, of least squared error.

    The first one tried is round-to-nearest's own, so no row is ever worse than under ``rtn``.
    """
    rows = to_rows(weight, fmt)
    bounds = integer_range(fmt)
    largest = safe_scale(rows.abs().amax(dim=1) / bounds[1])
    best_scale = largest
    best_error = _squared_error(rows, largest, bounds)
    for step in range(1, STEPS):
        share = 1 - (1 - LOWEST[fmt.bits]) * step / (STEPS - 1)
        scale = safe_scale(largest * share)
        error = _squared_error(rows, scale, bounds)
        better = error < best_error
        best_scale = torch.where(better, scale, best_scale)
        best_error = torch.where(better, error, best_error)
    return from_rows(quantize_rows(rows, best_scale, bounds), best_scale, weight.shape, fmt)


def _squared_error(
    rows: torch.Tensor, scale: torch.Tensor, bounds: tuple[int, int]
) -> torch.Tensor:
    restored = quantize_rows(rows, scale, bounds).mul_(scale[:, None])
    return restored.sub_(rows).square_().sum(dim=1)
