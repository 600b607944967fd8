"""Streaming observers: what range of a tensor its integers should span.

Two passes over the spooled data: ``RangeObserver`` finds the extremes, ``HistogramObserver`` then
counts values within them. Neither keeps a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    """Running minimum and maximum."""

    def __init__(self) -> None:
        self.minimum = float("inf")
        self.maximum = float("-inf")

    def update(self, value: torch.Tensor) -> None:
        """See one batch."""
        low, high = torch.aminmax(value)
        self.minimum = min(self.minimum, float(low))
        self.maximum = max(self.maximum, float(high))


class HistogramObserver:
    """Counts within a range known beforehand."""

    def __init__(self, extremes: RangeObserver) -> None:
        self.minimum, self.maximum = extremes.minimum, extremes.maximum
        self.counts = np.zeros(BINS, dtype=np.int64)

    def update(self, value: torch.Tensor) -> None:
        """See one batch."""
        if self.maximum > self.minimum:
            counts = torch.histc(value.float(), bins=BINS, min=self.minimum, max=self.maximum)
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
    over the histogram, rounding inside counted as step squared over 12 (Bennett 1948).

    Raises:
        UsageError: unknown observer.
    """
    if observer not in OBSERVERS:
        raise UsageError(f"unknown observer {observer!r}; possible: {', '.join(OBSERVERS)}")
    if observer == "minmax" or stats.maximum <= stats.minimum:
        return stats.minimum, stats.maximum
    if observer == "percentile":
        return _percentile_range(stats)
    return _mse_range(stats, levels=256 if not rules.symmetric else 255)


def activation_params(low: float, high: float, rules: StaticRules) -> ActivationParams:
    """Scale and zero point for a range; zero is always exactly representable.

    Scale is a float32 value, because that is what every runtime stores.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    unsigned = rules.dtype == "uint8"
    if rules.symmetric:
        scale = np.float32(max(-low, high) / 127)
        zero_point = 128 if unsigned else 0
    else:
        scale = np.float32((high - low) / 255)
        zero_point = 0
    if scale < np.finfo(np.float32).tiny:
        scale = np.float32(1.0)  # the tensor is constant zero
    if not rules.symmetric:
        smallest = 0 if unsigned else -128
        zero_point = smallest + int(np.clip(np.rint(-low / float(scale)), 0, 255))
    return ActivationParams(scale=float(scale), zero_point=zero_point, dtype=rules.dtype)


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


def _mse_range(stats: TensorStats, levels: int) -> tuple[float, float]:
    edges = np.linspace(stats.minimum, stats.maximum, BINS + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    weights = stats.histogram / max(int(stats.histogram.sum()), 1)
    best = (float("inf"), stats.minimum, stats.maximum)
    shares = np.linspace(1.0, 0.3, 57)
    for share_low in shares if stats.minimum < 0 else (1.0,):
        low = min(stats.minimum * share_low, 0.0)
        for share_high in shares if stats.maximum > 0 else (1.0,):
            high = max(stats.maximum * share_high, 0.0)
            clipped = np.clip(centres, low, high)
            step = (high - low) / (levels - 1)
            error = float(weights @ np.square(centres - clipped)) + step * step / 12
            if error < best[0]:
                best = (error, low, high)
    return best[1], best[2]
