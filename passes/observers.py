"""Streaming observers: what range of a tensor its integers should span.

Two passes over the spooled data: ``RangeObserver`` finds the extremes, ``HistogramObserver`` then
counts values within them. Neither keeps a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from advisor.errors import UsageError
from advisor.passes.graph import ActivationParams
from advisor.targets.capability import StaticRules

BINS: Final = 2048
PERCENTILE: Final = 99.99
"""Share of values (in percent) that the percentile observer keeps inside the range."""

COUNTED_AT_ONCE: Final = 2**22
"""Values per call of ``torch.histc``, which counts in float32 and is exact up to 2**24."""

LEAST_FLOAT16: Final = 2.0**-20
"""Smallest scale that is rounded to float16, which has four bits there."""

LEAST_SCALE: Final = 2.0**-64
"""A tensor whose scale would be smaller counts as nothing but zeros: products of scales, which
biases and kernels have, must stay numbers that float32 holds in full."""

ZERO_SCALE: Final = np.float32(2.0**-6)
"""Of a tensor of nothing but zeros. XNNPACK adds two tensors only where their scales are within
2**-10 to 2**8 of the sum's; most sums are that near to this one."""

FloatArray = npt.NDArray[np.float64]

SHARES: Final[FloatArray] = np.concatenate(
    [np.linspace(1.0, 0.3, 57), np.geomspace(0.3, 0.01, 35)[1:]]
)
"""Bounds that the mse observer tries, as shares of the extreme seen, widest first."""

OBSERVERS: Final = ("minmax", "percentile", "mse")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorStats:
    """What was seen of one tensor: extremes and a histogram of ``BINS`` equal bins between."""

    minimum: float
    maximum: float
    histogram: npt.NDArray[np.int64]

    def merged_range(self, other: TensorStats) -> tuple[float, float]:
        """The range that covers both tensors."""
        return min(self.minimum, other.minimum), max(self.maximum, other.maximum)


class RangeObserver:
    """Running minimum and maximum; both are NaN from the first NaN on."""

    def __init__(self) -> None:
        self.minimum = float("inf")
        self.maximum = float("-inf")

    def update(self, value: torch.Tensor) -> None:
        """See one batch."""
        low, high = (float(extreme) for extreme in torch.aminmax(value))
        if isnan(low) or isnan(self.minimum):  # min and max of Python would forget it
            self.minimum = self.maximum = float("nan")
            return
        self.minimum = min(self.minimum, low)
        self.maximum = max(self.maximum, high)


class HistogramObserver:
    """Counts within a range known beforehand."""

    def __init__(self, extremes: RangeObserver) -> None:
        self.minimum, self.maximum = extremes.minimum, extremes.maximum
        self.counts = np.zeros(BINS, dtype=np.int64)

    def update(self, value: torch.Tensor) -> None:
        """See one batch."""
        if self.maximum > self.minimum:
            for part in torch.split(value.float().flatten(), COUNTED_AT_ONCE):
                counts = torch.histc(part, bins=BINS, min=self.minimum, max=self.maximum)
                self.counts += counts.to(torch.int64).numpy()
        else:
            self.counts[0] += value.numel()

    def stats(self) -> TensorStats:
        """The result."""
        return TensorStats(minimum=self.minimum, maximum=self.maximum, histogram=self.counts)


def choose_range(stats: TensorStats, observer: str, rules: StaticRules) -> tuple[float, float]:
    """The range [low, high] that the integers should span.

    minmax: everything seen. percentile: without the 0.01 % farthest out, half on each side (one
    side only where the tensor has one sign). mse: the clipping of least expected squared error
    over the histogram, rounding inside counted as step squared over 12 (Bennett 1948); symmetric
    rules clip both sides alike.

    Raises:
        UsageError: unknown observer.
    """
    if observer not in OBSERVERS:
        raise UsageError(f"unknown observer {observer!r}; possible: {', '.join(OBSERVERS)}")
    if observer == "minmax" or stats.maximum <= stats.minimum:
        return stats.minimum, stats.maximum
    if observer == "percentile":
        return _percentile_range(stats)
    return _mse_range(stats, symmetric=rules.symmetric)


def activation_params(low: float, high: float, rules: StaticRules) -> ActivationParams:
    """Scale and zero point for a range; zero is always exactly representable.

    Scale is a value of the dtype that the runtime stores it in.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    unsigned = rules.dtype == "uint8"
    if rules.symmetric:
        scale = _rounded(max(-low, high) / 127, rules.scale_dtype)
        zero_point = 128 if unsigned else 0
    else:
        scale = _rounded((high - low) / 255, rules.scale_dtype)
        zero_point = 0
    if scale < LEAST_SCALE:
        scale = ZERO_SCALE
    if not rules.symmetric:
        smallest = 0 if unsigned else -128
        zero_point = smallest + int(np.clip(np.rint(-low / float(scale)), 0, 255))
    return ActivationParams(scale=float(scale), zero_point=zero_point, dtype=rules.dtype)


def _rounded(scale: float, dtype: str) -> np.float32:
    """The scale in ``dtype``; float16 keeps too few digits of one below ``LEAST_FLOAT16``."""
    if dtype == "float32" or not scale:
        return np.float32(scale)
    return np.float32(np.dtype(dtype).type(max(scale, LEAST_FLOAT16)))


def _percentile_range(stats: TensorStats) -> tuple[float, float]:
    edges = np.linspace(stats.minimum, stats.maximum, BINS + 1)
    cumulative = np.cumsum(stats.histogram) / max(int(stats.histogram.sum()), 1)
    outside = 1 - PERCENTILE / 100
    share_low = 0.0 if stats.minimum >= 0 else outside if stats.maximum <= 0 else outside / 2
    share_high = outside - share_low
    low_bin = int(np.searchsorted(cumulative, share_low, side="right"))
    high_bin = int(np.searchsorted(cumulative, 1 - share_high, side="left"))
    low = stats.minimum if share_low == 0 else float(edges[min(low_bin, BINS - 1)])
    high = stats.maximum if share_high == 0 else float(edges[min(high_bin, BINS - 1) + 1])
    return low, max(high, low)


def _mse_range(stats: TensorStats, *, symmetric: bool) -> tuple[float, float]:
    """The clipping of least error; what each side loses depends on that side's bound alone."""
    edges = np.linspace(stats.minimum, stats.maximum, BINS + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    weights = stats.histogram / max(int(stats.histogram.sum()), 1)
    if symmetric:
        bounds = max(-stats.minimum, stats.maximum) * SHARES
        errors = _clipped(np.abs(centres), weights, bounds) + np.square(bounds / 127) / 12
        bound = float(bounds[np.argmin(errors)])
        return max(-bound, min(stats.minimum, 0.0)), min(bound, max(stats.maximum, 0.0))
    lows, highs = -min(stats.minimum, 0.0) * SHARES, max(stats.maximum, 0.0) * SHARES
    steps = (lows[:, None] + highs[None, :]) / 255
    errors_by_side = _clipped(-centres, weights, lows)[:, None] + _clipped(centres, weights, highs)
    best = int(np.argmin(errors_by_side + np.square(steps) / 12))
    return float(-lows[best // len(SHARES)]), float(highs[best % len(SHARES)])


def _clipped(values: FloatArray, weights: FloatArray, bounds: FloatArray) -> FloatArray:
    """Expected squared excess of ``values`` over each bound."""
    excess = np.maximum(values[None, :] - bounds[:, None], 0.0)
    return np.asarray(np.square(excess) @ weights)
