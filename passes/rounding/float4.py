"""Four-bit floats: the scale maps the largest magnitude of each block to the largest number."""

from __future__ import annotations

import torch

from advisor.formats import TensorFormat
from advisor.passes.float4 import HOLDER, block_scales, divide, unit_of
from advisor.passes.float4 import round_to_float4 as round_numbers
from advisor.passes.graph import WeightTable
from advisor.passes.rounding.grid import shape_rows, to_rows


def round_to_float4(weight: torch.Tensor, fmt: TensorFormat) -> WeightTable:
    """The nearest numbers; scale = max |w| / 6 per block, rounded to E4M3 times a power of two."""
    rows = to_rows(weight, fmt)
    largest = rows.abs().amax(dim=1)
    scale = block_scales(largest, unit_of(largest))
    narrow = round_numbers(divide(rows, scale[:, None])).to(HOLDER)
    return shape_rows(narrow, scale, weight.shape, fmt)
