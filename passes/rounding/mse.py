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

LOWEST: Final = {8: 0.86, 4: 0.5, 2: 0.3}
"""Smallest scale tried, as a share of the round-to-nearest scale, by bits."""

STEPS: Final = {8: 7, 4: 15, 2: 20}
"""Scales tried, by bits: steps of a fiftieth to a thirtieth of the largest."""


def round_by_mse(weight: torch.Tensor, fmt: TensorFormat) -> WeightTable:
    """For every row the scale, among some shrunk ones, of least squared error.

    The first one tried is round-to-nearest's own, so no row is ever worse than under ``rtn``.
    Errors are compared in units of that scale: squares of tiny or huge weights would not be
    finite numbers other than zero.
    """
    rows = to_rows(weight, fmt)
    bounds = integer_range(fmt)
    largest = safe_scale(rows.abs().amax(dim=1) / bounds[1])
    units = rows / largest[:, None]
    best_share = torch.ones_like(largest)
    best_error = _squared_error(units, 1.0, bounds)
    steps = STEPS[fmt.bits]
    for step in range(1, steps):
        share = 1 - (1 - LOWEST[fmt.bits]) * step / (steps - 1)
        error = _squared_error(units, share, bounds)
        better = error < best_error
        best_share[better] = share
        best_error = torch.where(better, error, best_error)
    scale = safe_scale(largest * best_share)
    return from_rows(quantize_rows(rows, scale, bounds), scale, weight.shape, fmt)


def _squared_error(units: torch.Tensor, share: float, bounds: tuple[int, int]) -> torch.Tensor:
    restored = (units / share).round_().clamp_(*bounds).mul_(share)
    return restored.sub_(units).square_().sum(dim=1)
