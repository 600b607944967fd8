"""Eight-bit floats against ml_dtypes, which has them from another implementation."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from advisor.formats import scheme_named
from advisor.passes import ops
from advisor.passes.apply import dequantize, quantize_dequantize
from advisor.passes.digest import table_sha256
from advisor.passes.graph import ActivationParams
from advisor.passes.quantize import float8_params
from advisor.passes.rounding import algorithms_for, round_weight

FORMAT = scheme_named("fp8").weight


def test_every_number_of_the_format_is_kept() -> None:
    codes = np.arange(256, dtype=np.uint8)
    real = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    finite = real[np.isfinite(real)]
    narrow = torch.ops.advisor.quantize_static(torch.as_tensor(finite), 1.0, 0, "float8_e4m3")
    np.testing.assert_array_equal(narrow.float().numpy(), finite)
    assert float(np.abs(finite).max()) == ops.FLOAT8_MAX


@pytest.mark.parametrize("scale", [1.0, 0.013, 3e-5])
def test_activations_round_and_saturate_as_ml_dtypes_does(scale: float) -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 300 * scale
    found = quantize_dequantize(x, scale, 0, "float8_e4m3")
    step = np.float32(scale)
    clipped = np.clip(x.numpy() / step, -448, 448)
    wanted = clipped.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * step
    np.testing.assert_array_equal(found.numpy(), wanted)
    assert np.isfinite(found.numpy()).all()


def test_weights_have_the_largest_of_every_row_at_the_end_of_the_format() -> None:
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    weight[3] = 0.0
    table = round_weight(weight, FORMAT, "rtn")
    assert table.values.dtype == torch.float8_e4m3fn
    assert table.scale is not None
    largest = weight.abs().amax(1)
    rows = [0, 1, 2, 4, 5]
    np.testing.assert_allclose(table.scale[rows], largest[rows] / 448, rtol=1e-6)
    wide = (weight / table.scale[:, None]).numpy()
    wanted = np.clip(wide, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(table.values.float().numpy(), wanted)
    real = dequantize(table, FORMAT, (6, 40))
    np.testing.assert_array_equal(real.numpy(), wanted * table.scale.numpy()[:, None])
    assert not real[3].any()


def test_a_changed_bit_changes_the_digest() -> None:
    table = round_weight(torch.ones(2, 4), FORMAT, "rtn")
    before = table_sha256(table)
    table.values.view(torch.uint8)[0, 0] ^= 1
    assert table_sha256(table) != before


def test_the_range_is_that_of_the_integers() -> None:
    found = float8_params(ActivationParams(scale=0.5, zero_point=0, dtype="int8"))
    assert found.dtype == "float8_e4m3"
    assert found.scale * 448 == pytest.approx(0.5 * 127, rel=1e-6)


def test_only_one_algorithm_makes_a_difference() -> None:
    assert algorithms_for(scheme_named("fp8").weight) == ("rtn",)
    assert "mse" in algorithms_for(scheme_named("w8").weight)
