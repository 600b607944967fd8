"""Measure alone the few choices that decide the plan, where the prediction is least to be trusted.

A quadratic form is exact for small errors only. What a plan loses is mostly lost by a few choices
of few bits: each of those is measured alone, everything else left as good as it can be, and its
scores are scaled so that the form agrees with the measurement. Correlations stay, so interactions
are scaled with them. Then the plan is made again, until it contains nothing that is new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from advisor.search.problem import Choice, FloatArray, Linear, Problem
from advisor.search.table import Table, as_array, table_of

Plans = Callable[[Problem, FloatArray], Sequence[Choice]]
"""From a problem and the scores of its columns to the plans that look best."""

Alone = Callable[[Sequence[Choice]], Sequence[float]]
"""Measured divergences of choices, all different, that do not depend on each other."""

WORTH: Final = 0.03
"""Share of a plan's loss below which a choice is not worth measuring."""

ROUNDS: Final = 8
_LARGEST_FACTOR: Final = 16.0
_NOISE: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """problem, scores: scaled by what was measured. factors: measured over predicted divergence,
    by (group, candidate)."""

    problem: Problem
    scores: FloatArray
    factors: Mapping[tuple[int, int], float]


def recheck(
    problem: Problem, scores: FloatArray, plans: Plans, measure: Alone, *, most: int
) -> Checked:
    """Scale predictions by measurements of at most ``most`` choices.

    scores: shape (candidates + indicators, samples). plans: called anew after every round.
    Choices that change how tensors are stored are left as predicted: their error is shared with
    other groups.
    """
    table = table_of(problem)
    base = tuple(int(np.argmin(terms)) for terms in problem.divergence.per_group)
    factors: dict[tuple[int, int], float] = {}
    known: dict[Choice, float] = {}
    now = Checked(problem=problem, scores=scores, factors=factors)
    tried: set[tuple[int, int]] = set()
    for _ in range(ROUNDS):
        wanted = _decisive(now.problem, plans(now.problem, now.scores), tried)
        # Where a group has no other choice, its own is the base: nothing to compare it with.
        wanted = [each for each in wanted if each[1] != base[each[0]]]
        wanted = [each for each in wanted if _is_alone(table, base, each)][: most - len(factors)]
        wanted = wanted[: max(2, len(problem.groups) // 5)]
        if not wanted:
            break
        tried.update(wanted)
        alone = [(*base[:group], candidate, *base[group + 1 :]) for group, candidate in wanted]
        asked = [choice for choice in (base, *alone) if choice not in known]
        known.update(zip(asked, measure(asked), strict=True))
        for (group, candidate), choice in zip(wanted, alone, strict=True):
            lost = known[choice] - known[base]
            predicted = float(problem.divergence.per_group[group][candidate])
            if np.isfinite(lost) and lost > 0:
                limit = _LARGEST_FACTOR
                factors[group, candidate] = float(np.clip(lost / predicted, 1 / limit, limit))
        now = _scaled(problem, scores, factors)
    return now


def _decisive(
    problem: Problem, plans: Sequence[Choice], tried: set[tuple[int, int]]
) -> list[tuple[int, int]]:
    """What the plans lose most by, and what they would lose most by next; the worst first."""
    found: dict[tuple[int, int], float] = {}
    for choice in plans:
        terms = problem.divergence.per_group
        whole = sum(float(row[index]) for row, index in zip(terms, choice, strict=True))
        for group, index in enumerate(choice):
            losses = terms[group]
            dearer = [i for i in range(len(losses)) if losses[i] > losses[index]]
            near = [index, *sorted(dearer, key=lambda i: float(losses[i]))[:1]]
            for candidate in near:
                lost = float(losses[candidate])
                is_worth = max(WORTH * whole, _NOISE) < lost < whole / WORTH**0.5
                if is_worth and (group, candidate) not in tried:
                    found[group, candidate] = lost
    return sorted(found, key=lambda each: (-found[each], each))


def _is_alone(table: Table, base: Choice, column: tuple[int, int]) -> bool:
    """Whether taking the candidate changes no indicator."""
    group, candidate = column
    changed = (*base[:group], candidate, *base[group + 1 :])
    both = table.features(as_array([base, changed])).toarray()[:, table.columns.candidates :]
    return bool((both[0] == both[1]).all())


def _scaled(
    problem: Problem, scores: FloatArray, factors: Mapping[tuple[int, int], float]
) -> Checked:
    starts = table_of(problem).columns.starts
    rows = [terms.copy() for terms in problem.divergence.per_group]
    scaled = scores.copy()
    for (group, candidate), factor in factors.items():
        rows[group][candidate] *= factor
        scaled[int(starts[group]) + candidate] *= factor**0.5
    divergence = problem.divergence
    linear = Linear(
        constant=divergence.constant,
        per_group=tuple(rows),
        per_indicator=divergence.per_indicator,
    )
    return Checked(
        problem=replace(problem, divergence=linear), scores=scaled, factors=dict(factors)
    )
