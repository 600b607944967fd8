"""Where the study may go: near the exact solution, and inside every limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from advisor.search.milp import solve, within
from advisor.search.problem import Choice, Linear, Problem, evaluate

_NEAR_TIE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """anchor: the exact solution. options: candidates per group; one for groups that stay."""

    anchor: Choice
    options: tuple[tuple[int, ...], ...]

    def contains(self, choice: Choice) -> bool:
        """Whether every group takes one of its options."""
        return all(index in open_ for index, open_ in zip(choice, self.options, strict=True))


def region_around(problem: Problem, anchor: Choice, radius: int, max_groups: int) -> Region:
    """Candidates at most ``radius`` steps from the anchor on each group's own Pareto front.

    The front is over (divergence, size, latency) of the group alone. At most ``max_groups``
    groups may move: those whose step is closest to breaking even, that is whose divergence per
    saved cost is nearest to where the exact solution drew the line.
    """
    fronts = [_front(problem, group, anchor[group]) for group in range(len(problem.groups))]
    near: list[tuple[int, ...]] = []
    for front, index in zip(fronts, anchor, strict=True):
        at = front.index(index)
        near.append(tuple(sorted(front[max(0, at - radius) : at + radius + 1])))
    doubt = _doubt(problem, anchor, near)
    movable = sorted((group for group in doubt), key=lambda group: (doubt[group], group))
    moving = set(movable[:max_groups])
    return Region(
        anchor=anchor,
        options=tuple(
            options if group in moving else (anchor[group],) for group, options in enumerate(near)
        ),
    )


def repair(
    problem: Problem, region: Region, wanted: Choice, bounds: Mapping[str, float]
) -> Choice | None:
    """``wanted`` if it is inside ``bounds``, else the nearest choice of the region that is.

    Nearest: fewest groups changed, then least predicted divergence. None: the region has none.
    """
    if within(evaluate(problem, wanted), bounds):
        return wanted
    span = sum(float(terms.max()) for terms in problem.divergence.per_group) or 1.0
    distance = [
        (np.arange(terms.size) != index) + _NEAR_TIE * terms / span
        for terms, index in zip(problem.divergence.per_group, wanted, strict=True)
    ]
    nearest = replace(problem, divergence=Linear(per_group=tuple(distance)))
    allowed = [
        [index in options for index in range(len(candidates))]
        for options, candidates in zip(region.options, problem.candidates, strict=True)
    ]
    found = solve(nearest, minimise="divergence", bounds=bounds, allowed=allowed)
    return None if found is None else found.choice


def _front(problem: Problem, group: int, anchor: int) -> list[int]:
    """Candidates no other beats, from least to most divergence; always with the anchor's."""
    points = [
        tuple(
            float(linear.per_group[group][index])
            for linear in (problem.divergence, problem.size_bytes, problem.latency_s)
        )
        for index in range(len(problem.candidates[group]))
    ]

    def is_beaten(index: int) -> bool:
        mine = points[index]
        return any(
            all(a <= b for a, b in zip(other, mine, strict=True))
            and (other != mine or position < index)
            for position, other in enumerate(points)
            if position != index
        )

    kept = [index for index in range(len(points)) if index == anchor or not is_beaten(index)]
    return sorted(kept, key=lambda index: (points[index], index))


def _doubt(problem: Problem, anchor: Choice, near: list[tuple[int, ...]]) -> dict[int, float]:
    """Per group that could move: how far its best step is from breaking even (log ratio)."""
    cheaper: dict[int, list[float]] = {}
    dearer: dict[int, list[float]] = {}
    whole = evaluate(problem, anchor)
    for group, options in enumerate(near):
        for index in options:
            if index == anchor[group]:
                continue
            loss = _step(problem.divergence, group, anchor[group], index)
            saved = -_step(problem.size_bytes, group, anchor[group], index) / (
                whole.size_bytes or 1.0
            ) - _step(problem.latency_s, group, anchor[group], index) / (whole.latency_s or 1.0)
            side = cheaper if loss > 0 else dearer
            # A step that gains on both counts, or loses on both, is far from breaking even.
            rate = abs(loss) / abs(saved) if loss * saved > 0 else math.inf
            side.setdefault(group, []).append(rate)
    refused = min((r for rates in cheaper.values() for r in rates if r > 0), default=math.inf)
    taken = max(
        (r for rates in dearer.values() for r in rates if 0 < r < math.inf), default=refused
    )
    line = math.sqrt(refused * taken) if math.isfinite(refused) else taken
    return {
        group: min(_distance(rate, line) for rate in cheaper.get(group, []) + dearer.get(group, []))
        for group in sorted({*cheaper, *dearer})
    }


def _distance(rate: float, line: float) -> float:
    is_usable = 0 < rate < math.inf and 0 < line < math.inf
    return abs(math.log(rate) - math.log(line)) if is_usable else math.inf


def _step(linear: Linear, group: int, start: int, end: int) -> float:
    return float(linear.per_group[group][end] - linear.per_group[group][start])
