"""Speeds of one machine's kernels, as a runtime's measurement of them gives a profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, inf, log, sqrt
from typing import Final, Protocol

FAMILIES: Final = {
    "linear": "linear_ops_per_s",
    "conv": "conv_ops_per_s",
    "depthwise": "depthwise_ops_per_s",
    "gather": "gather_bytes_per_s",
    "elementwise": "elementwise_ops_per_s",
}
"""By name of a family's kernels, the field of ``Rates`` that they are fitted to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Speeds with all cores, or with one thread where it says so.

    float32_ops_per_s: the highest of all products and convolutions. int8_ops_per_s: the highest of
    products. bandwidth, of one core too: bytes per second of adding large arrays. launch_s: per
    node in a chain of tiny ones. dispatch_s: of a forward pass with one tiny node. linear, conv,
    depthwise: operations per second of middle-sized layers in float32. gather: bytes per second of
    an embedding. elementwise: operations per second of an operator without a weight. cache: bytes
    that are added at more than ``CACHED`` times the bandwidth; None where the fewest are not. says:
    what each was measured by, by field.
    """

    float32_ops_per_s: float
    int8_ops_per_s: float
    bandwidth_bytes_per_s: float
    core_bandwidth_bytes_per_s: float
    launch_s: float
    dispatch_s: float
    linear_ops_per_s: float
    conv_ops_per_s: float
    depthwise_ops_per_s: float
    gather_bytes_per_s: float
    elementwise_ops_per_s: float
    cache_bytes: float | None = None
    says: Mapping[str, str] = field(default_factory=dict[str, str])


CACHED: Final = 2.0


PASSES: Final = 3
"""Times that every kernel is timed, with all others between: another user of the processor, who
only ever adds, may be there for seconds."""


class Timed(Protocol):
    """A kernel that was timed. amount: operations, or bytes moved where it has none."""

    @property
    def amount(self) -> float:
        """Operations or bytes."""
        ...


def least_seconds(
    timers: Mapping[str, Sequence[Callable[[], float]]], say: Callable[[int, int], None]
) -> dict[str, list[float]]:
    """The least of ``PASSES`` timings of every kernel, by what it tells.

    say: called with the timings done and their number.
    """
    found = {name: [inf] * len(each) for name, each in timers.items()}
    done, count = 0, PASSES * sum(len(each) for each in timers.values())
    for _ in range(PASSES):
        for name, each in timers.items():
            for place, time_once in enumerate(each):
                say(done, count)
                found[name][place] = min(found[name][place], time_once())
                done += 1
    say(count, count)
    return found


def fit_rates(
    kernels: Mapping[str, Sequence[Timed]],
    seconds: Mapping[str, Sequence[float]],
    says: Mapping[str, str],
) -> Rates:
    """Rates from the seconds of every kernel: amounts per second beyond a forward of nothing.

    kernels, seconds: by what they tell: the ``FAMILIES``, "int8" (products), "bandwidth" and "core"
    (one large sum, with all cores and with one thread), "cached" (smaller ones), "chain" (nodes, as
    many as its amount) and "single" (one of them). says: what each of these was.
    """
    single = seconds["single"][0]
    rates = {
        name: rates_beyond([kernel.amount for kernel in each], seconds[name], single)
        for name, each in kernels.items()
    }
    found = {name: fit_family(rates[name]) for name in FAMILIES}
    least = CACHED * rates["bandwidth"][0]
    cached = [
        kernel.amount
        for kernel, rate in zip(kernels["cached"], rates["cached"], strict=True)
        if rate >= least
    ]
    return Rates(
        float32_ops_per_s=max(*rates["linear"], *rates["conv"], *rates["depthwise"]),
        int8_ops_per_s=max(rates["int8"]),
        bandwidth_bytes_per_s=rates["bandwidth"][0],
        core_bandwidth_bytes_per_s=rates["core"][0],
        launch_s=max(seconds["chain"][0] - single, 0.0) / (kernels["chain"][0].amount - 1),
        dispatch_s=single,
        linear_ops_per_s=found["linear"].value,
        conv_ops_per_s=found["conv"].value,
        depthwise_ops_per_s=found["depthwise"].value,
        gather_bytes_per_s=found["gather"].value,
        elementwise_ops_per_s=found["elementwise"].value,
        cache_bytes=max(cached, default=None),
        says={
            "float32_ops_per_s": "the fastest of the products and convolutions below",
            "int8_ops_per_s": f"the fastest of {len(rates['int8'])} {says['int8']}",
            "bandwidth_bytes_per_s": says["bandwidth"],
            "core_bandwidth_bytes_per_s": says["core"],
            "cache_bytes": (
                f"the most of {len(rates['cached'])} {says['cached']} that took less than "
                f"1/{CACHED:g} of the time that the bandwidth above would take"
            ),
            "launch_s": says["chain"],
            "dispatch_s": says["single"],
            **{FAMILIES[name]: found[name].describe(says[name]) for name in FAMILIES},
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """One rate for a family of operators, from kernels of several shapes.

    value: in amounts per second. error: standard error of the logarithm of an unseen shape's rate,
    so that two of three such shapes are expected within a factor of exp(error). lowest, highest:
    of the shapes, relative to ``value``.
    """

    value: float
    error: float
    lowest: float
    highest: float
    shapes: int

    def describe(self, what: str) -> str:
        """What was measured and how far an unseen shape is expected from it."""
        return (
            f"least squares in the logarithm over {self.shapes} {what}, {self.lowest:.2f} to "
            f"{self.highest:.2f} of it; an unseen shape is expected within a factor of "
            f"{exp(self.error):.2f} (one standard error),"
        )


def rates_beyond(
    amounts: Sequence[float], seconds: Sequence[float], start_s: float
) -> tuple[float, ...]:
    """Amounts per second of kernels, what starting one takes off each.

    Where the start is most of it, half of the time is still believed to be work.
    """
    pairs = zip(amounts, seconds, strict=True)
    return tuple(amount / max(taken - start_s, taken / 2) for amount, taken in pairs)


def fit_family(rates: Sequence[float]) -> Fitted:
    """The rate that is the least wrong for all shapes, and for one that was not timed.

    Times are wrong by factors, so the fit is in the logarithm: with one rate per family its least
    squares are the geometric mean. The error is s sqrt(1 + 1/n), with s the residual standard error
    on n - 1 degrees of freedom: prediction of a new observation (Montgomery, Peck and Vining 2012,
    section 2.5).
    """
    count = len(rates)
    logs = [log(rate) for rate in rates]
    mean = sum(logs) / count
    squares = sum((each - mean) ** 2 for each in logs)
    residual = sqrt(squares / (count - 1)) if count > 1 else 0.0
    return Fitted(
        value=exp(mean),
        error=residual * sqrt(1 + 1 / count),
        lowest=min(rates) / exp(mean),
        highest=max(rates) / exp(mean),
        shapes=count,
    )
