"""Statistics of repeated timings. Noise on a busy machine only ever adds, and adds rarely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

SETTLE_S: Final = 2e-3
"""Pause before another model's turn. Its threads spin for about a millisecond after a run, and
must not take cores from the next one's. Forbidding it would measure what nobody deploys: a network
of 40 microseconds on two threads took 60 (measured, ONNX Runtime 1.31.1)."""

LOW: Final = 0.25
"""The quantile that stands for a series: robust against both a lucky run and a busy machine."""


def low_quantile(seconds: Sequence[float], share: float = LOW) -> float:
    """The time that ``share`` of the runs beat, interpolated between runs.

    Raises:
        ValueError: no runs.
    """
    if not len(seconds):
        raise ValueError("a series of timings needs at least one run")
    return float(np.quantile(np.asarray(seconds, dtype=np.float64), share))


def split_half_noise(seconds: Sequence[float], share: float = LOW) -> float:
    """How far the quantiles of every other run are apart, relative to their mean.

    What the same measurement would differ by if it were made again with half the runs. 0 for
    fewer than two runs, of which nothing can be said.
    """
    if len(seconds) < 2:
        return 0.0
    one, other = low_quantile(seconds[::2], share), low_quantile(seconds[1::2], share)
    return abs(one - other) / ((one + other) / 2)
