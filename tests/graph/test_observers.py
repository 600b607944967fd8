"""Observers against numpy on known distributions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from advisor.errors import UsageError
from advisor.passes.apply import quantize_dequantize
from advisor.passes.observers import (
    BINS,
    HistogramObserver,
    RangeObserver,
    TensorStats,
    activation_params,
    choose_range,
)
from advisor.targets.capability import StaticRules

Values = npt.NDArray[np.float32]
ASYMMETRIC = StaticRules(dtype="uint8", symmetric=False)
SIGNED = StaticRules(dtype="int8", symmetric=False)
SYMMETRIC = StaticRules(dtype="int8", symmetric=True)
SYMMETRIC_UNSIGNED = StaticRules(dtype="uint8", symmetric=True)
ALL_RULES = (ASYMMETRIC, SIGNED, SYMMETRIC, SYMMETRIC_UNSIGNED)


def normal(rng: np.random.Generator) -> Values:
    return rng.normal(0.3, 1.0, 40_000).astype(np.float32)


def outliers(rng: np.random.Generator) -> Values:
    values = rng.normal(0, 1, 40_000)
    values[:3] = [60.0, -25.0, 40.0]
    return values.astype(np.float32)


def heavy(rng: np.random.Generator) -> Values:
    return rng.standard_t(2.2, 40_000).astype(np.float32)


def relu(rng: np.random.Generator) -> Values:
    values = np.maximum(rng.normal(0, 1, 40_000), 0)
    values[0] = 30.0
    return values.astype(np.float32)


def negative(rng: np.random.Generator) -> Values:
    return (-np.abs(rng.normal(0, 1, 40_000)) - 0.1).astype(np.float32)


def positive(rng: np.random.Generator) -> Values:
    return rng.uniform(5.0, 6.0, 40_000).astype(np.float32)


DISTRIBUTIONS = (normal, outliers, heavy, relu, negative, positive)
Distribution = Callable[[np.random.Generator], Values]


def draw(distribution: Distribution) -> Values:
    return distribution(np.random.default_rng(11))


def observe(values: Values, batches: int = 1) -> TensorStats:
    ranges = RangeObserver()
    parts = [torch.from_numpy(part) for part in np.array_split(values, batches)]
    for part in parts:
        ranges.update(part)
    histogram = HistogramObserver(ranges)
    for part in parts:
        histogram.update(part)
    return histogram.stats()


def fake_quantize(values: Values, low: float, high: float, rules: StaticRules) -> Values:
    """Textbook affine quantization in numpy, through the parameters that are shipped."""
    params = activation_params(low, high, rules)
    bounds = (0, 255) if rules.dtype == "uint8" else (-128, 127)
    integers = np.rint(values / np.float32(params.scale)) + params.zero_point
    integers = np.clip(integers, *bounds)
    restored: Values = (integers - params.zero_point).astype(np.float32) * np.float32(params.scale)
    return restored


def squared_error(values: Values, observer: str, rules: StaticRules) -> float:
    low, high = choose_range(observe(values), observer, rules)
    return float(np.square(fake_quantize(values, low, high, rules) - values).mean())


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_histogram_is_numpys(distribution: Distribution) -> None:
    values = draw(distribution)
    stats = observe(values)
    assert (stats.minimum, stats.maximum) == (values.min(), values.max())
    counts, _ = np.histogram(values, bins=BINS, range=(values.min(), values.max()))
    assert stats.histogram.sum() == values.size
    # float32 against float64 edges: a value on an edge may fall on either side.
    assert np.abs(np.cumsum(stats.histogram) - np.cumsum(counts)).max() <= 20


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_many_batches_are_one(distribution: Distribution) -> None:
    values = draw(distribution)
    one, many = observe(values), observe(values, batches=37)
    assert (one.minimum, one.maximum) == (many.minimum, many.maximum)
    assert np.array_equal(one.histogram, many.histogram)
    for observer in ("minmax", "percentile", "mse"):
        assert choose_range(one, observer, ASYMMETRIC) == choose_range(many, observer, ASYMMETRIC)


def test_a_large_count_in_one_bin_is_exact() -> None:
    ranges = RangeObserver()
    value = torch.zeros(2**24 + 5)
    value[0] = 1.0
    ranges.update(value)
    histogram = HistogramObserver(ranges)
    histogram.update(value)
    assert histogram.stats().histogram[0] == 2**24 + 4


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_minmax_is_everything_seen(distribution: Distribution) -> None:
    values = draw(distribution)
    assert choose_range(observe(values), "minmax", ASYMMETRIC) == (values.min(), values.max())


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_percentile_is_numpys(distribution: Distribution) -> None:
    values = draw(distribution)
    low, high = choose_range(observe(values), "percentile", ASYMMETRIC)
    share_low = 0.0 if values.min() >= 0 else 0.01 if values.max() <= 0 else 0.005
    width = float(values.max() - values.min()) / BINS
    gaps = {side: np.percentile(values, side) for side in (share_low, 100 - (0.01 - share_low))}
    wanted_low, wanted_high = gaps.values()
    # numpy interpolates between the few values that far out; one bin and one gap are allowed.
    ordered = np.sort(values)
    at_low, at_high = np.searchsorted(ordered, [wanted_low, wanted_high])
    assert ordered[max(at_low - 2, 0)] - width <= low <= ordered[at_low + 2] + width
    last = len(ordered) - 1
    assert ordered[max(at_high - 2, 0)] - width <= high <= ordered[min(at_high + 2, last)] + width


def test_percentile_keeps_the_side_that_has_no_tail() -> None:
    values = draw(relu)
    low, high = choose_range(observe(values), "percentile", ASYMMETRIC)
    assert low == 0.0
    assert high < 6.0 < values.max()
    low, high = choose_range(observe(-values), "percentile", ASYMMETRIC)
    assert high == 0.0
    assert low > -6.0


@pytest.mark.parametrize("rules", ALL_RULES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_mse_is_no_worse_than_minmax_on_the_data(
    distribution: Distribution, rules: StaticRules
) -> None:
    values = draw(distribution)
    assert squared_error(values, "mse", rules) <= 1.02 * squared_error(values, "minmax", rules)


@pytest.mark.parametrize("rules", ALL_RULES)
@pytest.mark.parametrize("distribution", [outliers, heavy, relu])
def test_mse_is_close_to_the_best_clipping_of_the_data(
    distribution: Distribution, rules: StaticRules
) -> None:
    """Brute force over clippings, with the real rounding error of the real values."""
    values = draw(distribution)
    lows = np.linspace(0.03, 1, 15) * min(float(values.min()), 0.0)
    highs = np.linspace(0.03, 1, 40) * max(float(values.max()), 0.0)
    best = min(
        float(np.square(fake_quantize(values, low, high, rules) - values).mean())
        for low in np.unique(lows)
        for high in highs
    )
    assert squared_error(values, "mse", rules) <= 1.1 * best


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("value", [0.0, 3.5, -2.0])
@pytest.mark.parametrize("rules", ALL_RULES)
def test_a_constant_is_exact(observer: str, value: float, rules: StaticRules) -> None:
    values = np.full(100, value, dtype=np.float32)
    stats = observe(values)
    assert stats.histogram.sum() == 100
    low, high = choose_range(stats, observer, rules)
    assert np.allclose(fake_quantize(values, low, high, rules), values, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rules", ALL_RULES)
@pytest.mark.parametrize(
    ("low", "high"),
    [(-1.0, 3.0), (0.0, 6.0), (2.0, 6.0), (-5.0, -1.0), (-0.001, 1e6), (-1e-30, 1e-30), (0.0, 0.0)],
)
def test_parameters_are_what_runtimes_can_store(
    low: float, high: float, rules: StaticRules
) -> None:
    params = activation_params(low, high, rules)
    assert params.dtype == rules.dtype
    assert float(np.float32(params.scale)) == params.scale > 0
    smallest, largest = (0, 255) if rules.dtype == "uint8" else (-128, 127)
    assert smallest <= params.zero_point <= largest
    if rules.symmetric:
        assert params.zero_point == (128 if rules.dtype == "uint8" else 0)
    zero = quantize_dequantize(torch.zeros(1), params.scale, params.zero_point, params.dtype)
    assert float(zero) == 0.0
    ends = torch.tensor([low, high])
    restored = quantize_dequantize(ends, params.scale, params.zero_point, params.dtype)
    assert torch.allclose(restored, ends, rtol=0, atol=params.scale * 0.5001)


def test_parameters_are_the_textbooks() -> None:
    params = activation_params(-1.0, 3.0, ASYMMETRIC)
    assert params.scale == np.float32(4 / 255)
    assert params.zero_point == 64  # 63.75, rounded
    params = activation_params(-1.0, 3.0, SIGNED)
    assert params.zero_point == 64 - 128
    assert activation_params(-1.0, 3.0, SYMMETRIC).scale == np.float32(3 / 127)


@pytest.mark.parametrize("first", [True, False])
def test_a_nan_is_never_forgotten(first: bool) -> None:
    clean, dirty = torch.ones(4), torch.tensor([1.0, float("nan")])
    observer = RangeObserver()
    for value in (dirty, clean) if first else (clean, dirty, clean):
        observer.update(value)
    assert np.isnan(observer.minimum)
    assert np.isnan(observer.maximum)


def test_an_unknown_observer_is_refused() -> None:
    with pytest.raises(UsageError, match="'entropy'; possible: minmax, percentile, mse"):
        choose_range(observe(draw(normal)), "entropy", ASYMMETRIC)


def test_stats_merge_to_the_range_of_both() -> None:
    assert observe(draw(relu)).merged_range(observe(draw(negative))) == (
        draw(negative).min(),
        draw(relu).max(),
    )
