"""What claims are made of: points of a result, and verdicts on its numbers alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

NOISE: Final = 1.03
"""Ratios of latencies closer than this are no difference."""

NO_LOSS: Final = 1e-6
"""Divergence of rounding in float32: two float files differ by no more."""

Found = tuple[str, bool, str]
"""A claim, whether it holds, and the numbers that say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A variant at one number of threads. ratio: of its latency to float32's; less is faster. low,
    high: its interval."""

    name: str
    origin: str
    size_bytes: int
    ratio: float
    low: float
    high: float
    divergence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a claim holds for one case and number of threads, and the numbers that say so."""

    claim: str
    case: str
    threads: int
    holds: bool
    numbers: str


def points_of(result: Mapping[str, Any], threads: int) -> list[Point]:
    """The variants of a result that were timed at ``threads``."""
    timings = result["timings"][str(threads)]
    return [
        Point(
            name=row["name"],
            origin=row["origin"],
            size_bytes=row["size_bytes"],
            **{name: timings[row["name"]][name] for name in ("ratio", "low", "high")},
            divergence=row["divergence"],
        )
        for row in result["rows"]
        if row["name"] in timings
    ]


def judge(
    result: Mapping[str, Any], claims: Callable[[Mapping[str, Any], Sequence[Point]], list[Found]]
) -> list[Verdict]:
    """The verdicts on a result at every number of threads."""
    return [
        Verdict(claim=claim, case=result["case"], threads=threads, holds=holds, numbers=numbers)
        for threads in map(int, result["timings"])
        for claim, holds, numbers in claims(result, points_of(result, threads))
    ]


def dominators(plan: Point, rivals: Sequence[Point]) -> list[Point]:
    """Rivals that are no worse in bytes, latency and divergence, and better in one of them."""
    return [
        rival
        for rival in rivals
        if _coordinates(rival) != _coordinates(plan)
        and all(a <= b for a, b in zip(_coordinates(rival), _coordinates(plan), strict=True))
    ]


def rivals_of(points: Sequence[Point]) -> list[Point]:
    """float32 and the other tools' files."""
    return [point for point in points if point.origin in ("float", "peer")]


def _coordinates(point: Point) -> tuple[float, ...]:
    return (point.size_bytes, point.ratio, point.divergence)


def undominated(points: Sequence[Point]) -> Found:
    """No file of another tool is better than a plan in one of three and worse in none."""
    claim = "no plan is dominated by another tool's file in bytes, latency and divergence"
    plans = [point for point in points if point.origin == "plan"]
    beaten = {
        plan.name: found[0].name for plan in plans if (found := dominators(plan, rivals_of(points)))
    }
    said = "; ".join(f"{name} by {rival}" for name, rival in beaten.items())
    return claim, bool(plans) and not beaten, said or f"{len(plans)} plans"


def base_ratio(points: Sequence[Point]) -> float:
    """The ratio of the faster of the two float files."""
    return min(p.ratio for p in points if p.origin == "float" or p.name == "uniform fp32")


def family(points: Sequence[Point], prefix: str) -> list[Point]:
    """Plans whose name begins so."""
    return [point for point in points if point.origin == "plan" and point.name.startswith(prefix)]


def quickest(points: Sequence[Point]) -> Point | None:
    """The fastest; None of none."""
    return min(points, key=lambda point: point.ratio, default=None)


def speed(point: Point, points: Sequence[Point]) -> str:
    """How many times as fast as float32."""
    return f"{base_ratio(points) / point.ratio:.2f}x"


def overlap(point: Point, other: Point) -> bool:
    """Whether the intervals of two latencies do: then the clock does not tell them apart."""
    return point.low <= other.high and other.low <= point.high


def against(point: Point, other: Point, points: Sequence[Point]) -> str:
    """Both speeds, and whether their intervals overlap."""
    said = f"{speed(point, points)} against {speed(other, points)} of {other.name}"
    return f"{said}; their intervals overlap" if overlap(point, other) else said
