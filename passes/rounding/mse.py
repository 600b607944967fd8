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

PIECE: Final = 2**17
"""Elements that all scales are tried on at a time: they and what is computed stay in the cache."""


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
    # Two rows at least: torch adds up a single long one in another order.
    pieces = max(min(units.numel() // PIECE, len(units) // 2), 1)
    shares = [_best_shares(piece, fmt.bits, bounds) for piece in units.tensor_split(pieces)]
    scale = safe_scale(largest * torch.cat(shares))
    return from_rows(quantize_rows(rows, scale, bounds), scale, weight.shape, fmt)


def _best_shares(units: torch.Tensor, bits: int, bounds: tuple[int, int]) -> torch.Tensor:
    """The share of least error for every row."""
    best_share = units.new_ones(len(units))
    best_error = _squared_error(units, 1.0, bounds)
    steps = STEPS[bits]
    for step in range(1, steps):
        share = 1 - (1 - LOWEST[bits]) * step / (steps - 1)
        error = _squared_error(units, share, bounds)
        better = error < best_error
        best_share[better] = share
        best_error = torch.where(better, error, best_error)
    return best_share


def _squared_error(units: torch.Tensor, share: float, bounds: tuple[int, int]) -> torch.Tensor:
    restored = (units / share).round_().clamp_(*bounds).mul_(share)
    return restored.sub_(units).square_().sum(dim=1)
