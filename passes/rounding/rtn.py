"""Round to nearest: the scale maps the largest magnitude of each row to the largest integer."""

from __future__ import annotations

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


def round_to_nearest(weight: torch.Tensor, fmt: TensorFormat) -> WeightTable:
    """Symmetric round-to-nearest; scale = max |w| / largest integer, per row."""
    rows = to_rows(weight, fmt)
    bounds = integer_range(fmt)
    scale = safe_scale(rows.abs().amax(dim=1) / bounds[1])
    return from_rows(quantize_rows(rows, scale, bounds), scale, weight.shape, fmt)
