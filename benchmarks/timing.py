"""Latency of many variants in one interleaved run, as ratios to one of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter
from typing import Final

from advisor.targets.idle import wait_until_idle
from advisor.targets.statistics import low_quantile

CONFIDENCE: Final = 0.95
MIN_ROUNDS, MAX_ROUNDS = 5, 61
_NORMAL_QUANTILE: Final = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds per call of one variant, and its share of the reference's in the same round.

    min_s, low_s, median_s: least, first quartile and median of the rounds' medians; the quartile
    is what the package's own measurements go by. ratio: median over rounds. low, high: interval
    of that median at ``CONFIDENCE``.
    """

    min_s: float
    low_s: float
    median_s: float
    ratio: float
    low: float
    high: float
    rounds: int
    calls: int

    def record(self) -> dict[str, float]:
        """As JSON, six digits: more would be noise."""
        return {name: float(f"{value:.6g}") for name, value in asdict(self).items()}


def time_variants(
    calls: Mapping[str, Callable[[], object]], *, reference: str, seconds: float
) -> dict[str, Timing]:
    """Call every variant in turns for about ``seconds`` in all, at least ``MIN_ROUNDS`` rounds.

    Waiting in between takes up to twice as long again.

    A round visits every variant once, forwards and backwards by turns, so that drift of the clock
    and load falls on all alike. A visit waits until other threads stop spinning, makes an
    untimed call, which brings caches back, and as many timed ones as its share of the time allows;
    the median of a visit counts.
    """
    once = {name: _settled(call) for name, call in calls.items()}
    pauses = {name: _pause_after(call) for name, call in calls.items()}
    rounds = int(seconds / sum(max(4 * once[name], pauses[name] / 2) for name in calls))
    rounds = min(max(rounds, MIN_ROUNDS), MAX_ROUNDS)
    visit = seconds / rounds / len(calls)
    repeats = {name: max(1, int(visit / once[name]) - 1) for name in calls}
    seen: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        order = list(calls) if number % 2 == 0 else list(reversed(list(calls)))
        for name in order:
            wait_until_idle()
            calls[name]()
            seen[name].append(median(_timed(calls[name]) for _ in range(repeats[name])))
    return {
        name: summarise(values, seen[reference], calls=repeats[name])
        for name, values in seen.items()
    }


def summarise(values: Sequence[float], reference: Sequence[float], *, calls: int) -> Timing:
    """The timing of one variant from its visits and the reference's, round by round."""
    ratios = sorted(a / b for a, b in zip(values, reference, strict=True))
    low, high = median_interval(ratios)
    return Timing(
        min_s=min(values),
        low_s=low_quantile(values),
        median_s=median(values),
        ratio=median(ratios),
        low=low,
        high=high,
        rounds=len(ratios),
        calls=calls,
    )


def median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """The order statistics that hold the median at about 95 %, by the binomial's normal limit.

    Below six values these are the extremes, whose confidence is lower (94 % of five).
    """
    n = len(ordered)
    margin = _NORMAL_QUANTILE * math.sqrt(n) / 2
    low = max(math.floor(n / 2 - margin), 0)
    return ordered[low], ordered[n - 1 - low]


def _settled(call: Callable[[], object]) -> float:
    """Seconds of one call after two others: the first ones allocate."""
    call()
    call()
    return max(_timed(call), 1e-7)


def _pause_after(call: Callable[[], object]) -> float:
    """Seconds until the threads of a call rest."""
    call()
    return _timed(wait_until_idle)


def _timed(call: Callable[[], object]) -> float:
    started = perf_counter()
    call()
    return perf_counter() - started
