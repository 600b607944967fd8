"""Four-bit floats in blocks against ml_dtypes and NumPy, which have them from elsewhere."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from advisor.formats import scheme_named, storage_bits
from advisor.passes import float4
from advisor.passes.apply import dequantize
from advisor.passes.ops import QUANTIZE_DEQUANTIZE_DYNAMIC
from advisor.passes.rounding import algorithms_for, round_weight

FORMAT = scheme_named("nvfp4").weight
BLOCK = 16

Array = np.ndarray[Any, Any]


def narrowed(x: Array) -> Array:
    """Through E2M1 and back; ml_dtypes saturates as hardware does."""
    wide: Array = x.astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    return wide


def in_blocks(x: Array, unit: float) -> Array:
    """NVFP4 of rows of blocks, step by step."""
    rows = x.reshape(-1, BLOCK)
    codes = (np.abs(rows).max(1, keepdims=True) / np.float32(6 * unit)).clip(max=448)
    scale = codes.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.float32(unit)
    over = np.divide(rows, scale, out=np.zeros_like(rows), where=scale > 0)
    blocks: Array = narrowed(over) * scale
    return blocks.reshape(x.shape)


def test_numbers_round_as_ml_dtypes_does() -> None:
    every = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    real = torch.as_tensor(every)
    assert torch.equal(float4.round_to_float4(real), real)
    assert torch.equal(real.to(float4.HOLDER).float(), real), "float8 holds all of them"
    assert float(real.max()) == float4.LARGEST
    ties = np.concatenate([(every[:7] + every[1:8]) / 2, np.linspace(-9, 9, 4001)])
    x = ties.astype(np.float32)
    np.testing.assert_array_equal(float4.round_to_float4(torch.as_tensor(x)).numpy(), narrowed(x))


@pytest.mark.parametrize("size", [1.0, 1e-4, 300.0])
def test_activations_have_a_scale_per_block(size: float) -> None:
    x = torch.randn(5, 3, 64, generator=torch.Generator().manual_seed(0)) * size
    x[0, 0, :BLOCK] = 0.0
    found = QUANTIZE_DEQUANTIZE_DYNAMIC(x, "fp4", True, "per-block", BLOCK)
    np.testing.assert_array_equal(found.numpy(), in_blocks(x.numpy(), float4.ACTIVATION_UNIT))


@pytest.mark.parametrize("size", [0.05, 1e-6, 1e5])
def test_weights_have_scales_over_a_power_of_two(size: float) -> None:
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(1)) * size
    weight[3] = 0.0
    table = round_weight(weight, FORMAT, "rtn")
    assert table.scale is not None
    assert tuple(table.scale.shape) == (24, 4)
    codes, unit = float4.split_scales(table.scale)
    assert np.log2(unit) == np.floor(np.log2(unit))
    assert torch.equal(codes.float() * unit, table.scale), "nothing is lost by storing both"
    assert torch.isfinite(codes.float()).all()
    found = dequantize(table, FORMAT, tuple(weight.shape))
    np.testing.assert_array_equal(found.numpy(), in_blocks(weight.numpy(), unit))
    worst = float((found - weight).abs().max() / weight.abs().max())
    assert worst < 0.2, "half of the widest gap, 1 in 6, and the rounding of the scale"


def test_a_weight_costs_four_and_a_half_bits_and_a_unit() -> None:
    assert storage_bits((24, 64), FORMAT) == 24 * 64 * 4 + 24 * 4 * 8 + 32
    assert algorithms_for(FORMAT) == ("rtn",)
