"""Latency of many variants in one interleaved run, as ratios to one of them."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from statistics import median
from typing import Final

from advisor.targets.statistics import level
from advisor.targets.turns import take_turn

CONFIDENCE: Final = 0.95
MIN_ROUNDS, MAX_ROUNDS = 9, 101
_NORMAL_QUANTILE: Final = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds per call of one variant, and its share of the reference's.

    min_s, median_s: of its turns. ratio: to the reference, of medians over rounds without what
    slowed whole rounds. low, high: interval of that ratio at ``CONFIDENCE``.
    """

    min_s: float
    median_s: float
    ratio: float
    low: float
    high: float
    rounds: int

    def record(self) -> dict[str, float]:
        """As JSON, six digits: more would be noise."""
        return {name: float(f"{value:.6g}") for name, value in asdict(self).items()}


def time_variants(
    calls: Mapping[str, Callable[[], object]],
    *,
    reference: str,
    seconds: float,
    threads: int | None,
) -> dict[str, Timing]:
    """Call every variant in turns for about ``seconds``, at least ``MIN_ROUNDS`` rounds.

    A round visits every variant once, each round in an order of its own, so that drift and load
    fall on all alike. A turn is that of ``targets.turns``, threads those of every variant.
    """
    for call in calls.values():
        call()
        call()  # the first ones allocate
    seen: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(0).shuffle  # a fixed sequence, not a secret
    begin = time.monotonic()
    for done in count():
        over = done >= MAX_ROUNDS or time.monotonic() - begin > seconds
        if done >= MIN_ROUNDS and over:
            break
        shuffle(order)
        for name in order:
            seen[name].append(take_turn(calls[name], threads))
    return ratios_to(seen, reference)


def ratios_to(seen: Mapping[str, Sequence[float]], reference: str) -> dict[str, Timing]:
    """Timings from the seconds of every variant's turns, one per round."""
    slowed = level(list(seen.values())).slowed
    medians: dict[str, float] = {}
    spreads: dict[str, tuple[float, float]] = {}  # of the median, below and above, in logarithms
    for name, values in seen.items():
        ordered = sorted(value / slow for value, slow in zip(values, slowed, strict=True))
        low, high = median_interval(ordered)
        medians[name] = middle = median(ordered)
        spreads[name] = math.log(middle / low), math.log(high / middle)
    below, above = spreads[reference]
    found: dict[str, Timing] = {}
    for name, values in seen.items():
        ratio = medians[name] / medians[reference]
        under, over = spreads[name]
        is_other = name != reference
        found[name] = Timing(
            min_s=min(values),
            median_s=median(values),
            ratio=ratio,
            low=ratio * math.exp(-math.hypot(under, above) * is_other),
            high=ratio * math.exp(math.hypot(over, below) * is_other),
            rounds=len(values),
        )
    return found


def median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """The order statistics that hold the median at about 95 %, by the binomial's normal limit.

    Below six values these are the extremes, whose confidence is lower (94 % of five).
    """
    n = len(ordered)
    margin = _NORMAL_QUANTILE * math.sqrt(n) / 2
    low = max(math.floor(n / 2 - margin), 0)
    return ordered[low], ordered[n - 1 - low]
