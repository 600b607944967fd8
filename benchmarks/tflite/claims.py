"""The claims about one result of ``compare``, each checked on its numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
    speed,
    undominated,
)


def check_claims(result: Mapping[str, Any]) -> list[Verdict]:
    """Every claim that can be made about this result."""
    return judge(result, _claims_about)


def _claims_about(result: Mapping[str, Any], points: Sequence[Point]) -> list[Found]:
    found = [_as_fast(points), undominated(points)]
    if result["is_trained"]:
        found.append(_more_accurate(points))
        found += [_at_equal_bytes(peer, points) for peer in points if peer.origin == "peer"]
    return found


def _uniform(points: Sequence[Point]) -> list[Point]:
    """Uniform plans, and the float model as litert-torch converts it."""
    return [point for point in points if point.origin in ("uniform", "float")]


def _as_fast(points: Sequence[Point]) -> Found:
    claim = "a plan is no slower than the fastest uniform one, float32 included, within 3 %"
    best, ours = quickest(_uniform(points)), quickest(family(points, "latency ("))
    if best is None or ours is None:
        return claim, False, "nothing to compare"
    return claim, ours.ratio <= best.ratio * NOISE, against(ours, best, points)


def _more_accurate(points: Sequence[Point]) -> Found:
    claim = "a plan as fast as the fastest uniform one, within 3 %, loses less than it"
    best = quickest(_uniform(points))
    if best is None:
        return claim, False, "nothing to compare"
    able = [p for p in points if p.origin == "plan" and p.ratio <= best.ratio * NOISE]
    ours = min(able, key=lambda point: point.divergence, default=None)
    if ours is None:
        return claim, False, f"no plan is as fast as {best.name} ({speed(best, points)})"
    limit = max(best.divergence, NO_LOSS)
    numbers = f"{ours.divergence:.2g} ({ours.name}) against {best.divergence:.2g} of {best.name}"
    return claim, ours.divergence < limit, numbers


def _at_equal_bytes(peer: Point, points: Sequence[Point]) -> Found:
    claim = "at the bytes of a stock recipe of ai-edge-quantizer, a plan loses less"
    able = [p for p in points if p.origin == "plan" and p.size_bytes <= peer.size_bytes]
    ours = min(able, key=lambda point: point.divergence, default=None)
    if ours is None:
        return claim, False, f"{peer.name}: no plan is that small"
    base = base_ratio(points)
    return (
        claim,
        ours.divergence < max(peer.divergence, NO_LOSS),
        f"{ours.divergence:.2g} at {base / ours.ratio:.2f}x against {peer.divergence:.2g} at "
        f"{base / peer.ratio:.2f}x of {peer.name}",
    )
