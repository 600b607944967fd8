"""The claims about one result of ``compare``, each checked on its numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.claims import (
    NO_LOSS,
    NOISE,
    Found,
    Point,
    Verdict,
    against,
    base_ratio,
    family,
    judge,
    quickest,
    rivals_of,
    speed,
    undominated,
)

MORE_BYTES: Final = 1.02
SLACK: Final = 1.05
RECOVERED: Final = 0.5
RESNET_SPEEDUP: Final = 2.5


def check_claims(result: Mapping[str, Any]) -> list[Verdict]:
    """Every claim that can be made about this result."""
    return judge(result, _claims_about)


def _claims_about(result: Mapping[str, Any], points: Sequence[Point]) -> list[Found]:
    found = [undominated(points), _fastest(points)]
    if result["is_trained"]:
        found += [_more_accurate(points), _recovered(points)]
    has_vnni = any(feature.endswith("vnni") for feature in result["machine"]["features"])
    if result["case"].startswith("resnet18") and has_vnni:
        found.append(_resnet(points))
    return found


def _fastest(points: Sequence[Point]) -> Found:
    claim = 'objective="latency" is as fast as the fastest other file, within 3 %'
    fastest, ours = quickest(rivals_of(points)), quickest(family(points, "latency ("))
    if ours is None or fastest is None:
        return claim, False, "nothing to compare"
    return claim, ours.ratio <= fastest.ratio * NOISE, against(ours, fastest, points)


def _more_accurate(points: Sequence[Point]) -> Found:
    claim = "as fast as the fastest other quantized file, at most 2 % more bytes, less divergence"
    # float32 loses nothing, so nothing can lose less where it is the fastest.
    fastest = quickest([point for point in points if point.origin == "peer"])
    if fastest is None:
        return claim, False, "nothing to compare"
    limit = max(fastest.divergence, NO_LOSS)
    able = [
        plan
        for plan in family(points, "latency")
        if plan.ratio <= fastest.ratio * NOISE
        and plan.size_bytes <= fastest.size_bytes * MORE_BYTES
    ]
    best = min(able, key=lambda plan: plan.divergence, default=None)
    if best is None:
        nearest = quickest(family(points, "latency,")) or quickest(family(points, "latency"))
        said = "no plan" if nearest is None else f"{nearest.name}: {speed(nearest, points)}"
        return claim, False, f"{said}, {fastest.name}: {speed(fastest, points)}"
    numbers = f"{best.divergence:.2g} against {fastest.divergence:.2g} of {fastest.name}"
    return claim, best.divergence < limit, numbers


def _recovered(points: Sequence[Point]) -> Found:
    claim = "at all-int8's latency + 5 %, at least half of its divergence is recovered"
    int8 = quickest([p for p in points if p.name.startswith("uniform w8a8")])
    plan = quickest(family(points, "all-int8 latency"))
    if int8 is None or plan is None:
        return claim, False, "no plan" if plan is None else "no uniform int8"
    holds = plan.ratio <= int8.ratio * SLACK * NOISE and plan.divergence <= int8.divergence * (
        1 - RECOVERED
    )
    share = 1 - plan.divergence / int8.divergence
    return claim, holds, f"{share:.0%} at {plan.ratio / int8.ratio - 1:+.1%} latency"


def _resnet(points: Sequence[Point]) -> Found:
    claim = "with VNNI ResNet-18 at 224 pixels runs at least 2.5 times as fast as float32"
    plan = quickest(family(points, "latency ("))
    if plan is None:
        return claim, False, "no plan"
    return claim, base_ratio(points) / plan.ratio >= RESNET_SPEEDUP, speed(plan, points)
