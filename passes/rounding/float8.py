"""Eight-bit floats: the scale maps the largest magnitude of each row to the largest number."""

from __future__ import annotations

import torch

from advisor.formats import TensorFormat
from advisor.passes.graph import WeightTable
from advisor.passes.ops import FLOAT8, FLOAT8_MAX
from advisor.passes.rounding.grid import safe_scale, shape_rows, to_rows


def round_to_float8(weight: torch.Tensor, fmt: TensorFormat) -> WeightTable:
    """The nearest numbers, half to even; scale = max |w| / 448, per row."""
    rows = to_rows(weight, fmt)
    scale = safe_scale(rows.abs().amax(dim=1) / FLOAT8_MAX)
    narrow = (rows / scale[:, None]).clamp_(-FLOAT8_MAX, FLOAT8_MAX).to(FLOAT8[fmt.dtype])
    return shape_rows(narrow, scale, weight.shape, fmt)
