"""The claims about one result of ``compare``, each checked on its numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

NOISE: Final = 1.03
"""Ratios of latencies closer than this are no difference."""

MORE_BYTES: Final = 1.02
SLACK: Final = 1.05
RECOVERED: Final = 0.5
RESNET_SPEEDUP: Final = 2.5
NO_LOSS: Final = 1e-6
"""Divergence of rounding in float32: two float files differ by no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A variant at one number of threads. ratio: of its latency to float32's; less is faster."""

    name: str
    origin: str
    size_bytes: int
    ratio: float
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
            ratio=timings[row["name"]]["ratio"],
            divergence=row["divergence"],
        )
        for row in result["rows"]
        if row["name"] in timings
    ]


def check_claims(result: Mapping[str, Any]) -> list[Verdict]:
    """Every claim that can be made about this result."""
    verdicts: list[Verdict] = []
    for threads in map(int, result["timings"]):
        points = points_of(result, threads)
        found = [_undominated(points), _fastest(points)]
        if result["is_trained"]:
            found += [_more_accurate(points), _recovered(points)]
        if result["case"].startswith("resnet18"):
            found.append(_resnet(points))
        verdicts += [
            Verdict(claim=claim, case=result["case"], threads=threads, holds=holds, numbers=numbers)
            for claim, holds, numbers in found
        ]
    return verdicts


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


_Found = tuple[str, bool, str]


def _undominated(points: Sequence[Point]) -> _Found:
    claim = "no plan is dominated by another tool's file in bytes, latency and divergence"
    plans = [point for point in points if point.origin == "plan"]
    beaten = {
        plan.name: found[0].name for plan in plans if (found := dominators(plan, rivals_of(points)))
    }
    said = "; ".join(f"{name} by {rival}" for name, rival in beaten.items())
    return claim, bool(plans) and not beaten, said or f"{len(plans)} plans"


def _fastest(points: Sequence[Point]) -> _Found:
    claim = 'objective="latency" is as fast as the fastest other file, within 3 %'
    fastest, ours = _quickest(rivals_of(points)), _quickest(_family(points, "latency ("))
    if ours is None or fastest is None:
        return claim, False, "nothing to compare"
    numbers = f"{_speed(ours, points)} against {_speed(fastest, points)} of {fastest.name}"
    return claim, ours.ratio <= fastest.ratio * NOISE, numbers


def _more_accurate(points: Sequence[Point]) -> _Found:
    claim = "as fast as the fastest other quantized file, at most 2 % more bytes, less divergence"
    # float32 loses nothing, so nothing can lose less where it is the fastest.
    fastest = _quickest([point for point in points if point.origin == "peer"])
    if fastest is None:
        return claim, False, "nothing to compare"
    limit = max(fastest.divergence, NO_LOSS)
    able = [
        plan
        for plan in _family(points, "latency")
        if plan.ratio <= fastest.ratio * NOISE
        and plan.size_bytes <= fastest.size_bytes * MORE_BYTES
    ]
    best = min(able, key=lambda plan: plan.divergence, default=None)
    if best is None:
        nearest = _quickest(_family(points, "latency,")) or _quickest(_family(points, "latency"))
        said = "no plan" if nearest is None else f"{nearest.name}: {_speed(nearest, points)}"
        return claim, False, f"{said}, {fastest.name}: {_speed(fastest, points)}"
    numbers = f"{best.divergence:.2g} against {fastest.divergence:.2g} of {fastest.name}"
    return claim, best.divergence < limit, numbers


def _recovered(points: Sequence[Point]) -> _Found:
    claim = "at all-int8's latency + 5 %, at least half of its divergence is recovered"
    int8 = _quickest([p for p in points if p.name.startswith("uniform w8a8")])
    plan = _quickest(_family(points, "all-int8 latency"))
    if int8 is None or plan is None:
        return claim, False, "no plan" if plan is None else "no uniform int8"
    holds = plan.ratio <= int8.ratio * SLACK * NOISE and plan.divergence <= int8.divergence * (
        1 - RECOVERED
    )
    share = 1 - plan.divergence / int8.divergence
    return claim, holds, f"{share:.0%} at {plan.ratio / int8.ratio - 1:+.1%} latency"


def _resnet(points: Sequence[Point]) -> _Found:
    claim = "ResNet-18 at 224 pixels runs at least 2.5 times as fast as float32"
    plan = _quickest(_family(points, "latency ("))
    if plan is None:
        return claim, False, "no plan"
    return claim, base_ratio(points) / plan.ratio >= RESNET_SPEEDUP, _speed(plan, points)


def base_ratio(points: Sequence[Point]) -> float:
    """The ratio of the faster of the two float files."""
    return min(p.ratio for p in points if p.origin == "float" or p.name == "uniform fp32")


def _family(points: Sequence[Point], prefix: str) -> list[Point]:
    return [point for point in points if point.origin == "plan" and point.name.startswith(prefix)]


def _quickest(points: Sequence[Point]) -> Point | None:
    return min(points, key=lambda point: point.ratio, default=None)


def _speed(point: Point, points: Sequence[Point]) -> str:
    return f"{base_ratio(points) / point.ratio:.2f}x"
