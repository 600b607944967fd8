"""How fast and how large a plan is beside its float model: the numbers, and how they are summed up.

Plain data and statistics; running the models is each target's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, comb
from statistics import median
from time import perf_counter
from typing import Final, Self

import numpy as np

from advisor.errors import UsageError
from advisor.targets.idle import wait_until_idle

LEAST_ROUNDS: Final = 6
"""Fewer cannot bound a median: all six fall on one side of it with a chance of 3 %."""

CONFIDENCE: Final = 0.95

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done and the steps in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Growth of a process that does nothing but open and run one model, in bytes.

    runtime_bytes: by the runtime itself, before any model of size. resident_bytes: after opening
    the model. loading_peak_bytes, running_peak_bytes: at the highest moment of opening it and of
    running it. All but the first count from where the runtime is already loaded. Where a system
    cannot start a new count of the highest moment (macOS), the running peak covers loading too.
    """

    runtime_bytes: int
    resident_bytes: int
    loading_peak_bytes: int
    running_peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One file of the comparison.

    latency_s: median seconds of one call; latency_min_s, latency_p90_s: the fastest, and what nine
    of ten do not exceed. throughput_per_s: samples per second over all calls, one after another.
    memory: None where the system does not tell. file_bytes: of the model's own files. partitions:
    parts that the runtime hands to its delegate; None where it has none.
    """

    latency_s: float
    latency_min_s: float
    latency_p90_s: float
    throughput_per_s: float
    memory: Memory | None
    file_bytes: int
    partitions: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Plan over float, as a quotient of latencies: 0.5 is twice as fast.

    value: median over the rounds of each round's own quotient, which a drift of the clock or
    another process disturbs least. low, high: where the true median lies with 95 % confidence, from
    the order of the quotients alone; no distribution is assumed.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, quotients: Sequence[float]) -> Self:
        """From one quotient per round, at least ``LEAST_ROUNDS``."""
        ordered = sorted(quotients)
        outside = _outside(len(ordered))
        return cls(value=median(ordered), low=ordered[outside], high=ordered[-1 - outside])


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """The float model and the plan, measured on this machine in turns.

    latency_ratio: plan over float. rounds: how often both were timed. shapes: of the inputs, by
    name. threads: of one operator; None is the runtime's own choice. executed_by: the runtime and
    its version. cpu: its name.
    """

    float_model: Variant
    plan: Variant
    latency_ratio: Ratio
    rounds: int
    batch: int
    shapes: dict[str, tuple[int, ...]]
    threads: int | None
    executed_by: str
    cpu: str


def time_in_turns(
    calls: Sequence[Callable[[], object]],
    *,
    rounds: int,
    seconds: float,
    progress: Progress | None = None,
) -> list[list[list[float]]]:
    """Seconds of every call, by function, then by round.

    Each round visits every function once, in alternating order, so that drift and load meet all
    alike. A visit waits for the threads of the function before to go to sleep, and begins with a
    call that is not counted. ``seconds``: of the whole, shared by the visits; each has one call
    at least.

    Raises:
        UsageError: too few rounds, or no time.
    """
    if rounds < LEAST_ROUNDS:
        raise UsageError(
            f"{rounds} rounds were asked, but an interval of confidence needs {LEAST_ROUNDS} or "
            "more; ask more rounds"
        )
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{seconds} seconds were asked; ask a positive number")
    share = seconds / (rounds * len(calls))
    wanted = [max(1, ceil(share / _first_seconds(call)) - 1) for call in calls]
    times: list[list[list[float]]] = [[] for _ in calls]
    order = list(range(len(calls)))
    for done in range(rounds):
        for index in order:
            wait_until_idle()
            calls[index]()
            times[index].append([_seconds(calls[index]) for _ in range(wanted[index])])
        order.reverse()
        if progress is not None:
            progress("timing", done + 1, rounds)
    return times


def summarise(
    times: Sequence[Sequence[float]],
    *,
    batch: int,
    memory: Memory | None,
    file_bytes: int,
    partitions: int | None = None,
) -> Variant:
    """One variant from the seconds of its calls, by round."""
    every = [value for visit in times for value in visit]
    return Variant(
        latency_s=median(every),
        latency_min_s=min(every),
        latency_p90_s=float(np.quantile(every, 0.9)),
        throughput_per_s=batch * len(every) / sum(every),
        memory=memory,
        file_bytes=file_bytes,
        partitions=partitions,
    )


def paired_ratio(plan: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> Ratio:
    """The ratio of two functions timed in the same rounds; each round's median counts once."""
    return Ratio.of([median(a) / median(b) for a, b in zip(plan, base, strict=True)])


def _first_seconds(call: Callable[[], object]) -> float:
    """Of the second call: the first allocates what later ones find."""
    call()
    return _seconds(call)


def _seconds(call: Callable[[], object]) -> float:
    started = perf_counter()
    call()
    return perf_counter() - started


def _outside(count: int) -> int:
    """How many of ``count`` ordered values may be cut from each end of the interval.

    The median is below the k-th smallest of n values when fewer than k of them are below it: a
    binomial with probability one half (David and Nagaraja, Order Statistics, section 7.1).
    """
    allowed = (1 - CONFIDENCE) / 2
    cut, tail = 0, 2.0**-count
    while tail + comb(count, cut + 1) * 2.0**-count <= allowed:
        cut += 1
        tail += comb(count, cut) * 2.0**-count
    return cut
