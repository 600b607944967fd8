"""Local search on predictions: one or two groups change at a time while that is better.

The exact solver sees no interactions; from where it ends, or from the best plan measured so far,
steepest descent over single changes and pairs of them finds the nearest plan that no such change
improves. Pairs matter because a budget that is full admits no single improvement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.sparse import csr_array

from advisor.search.milp import within
from advisor.search.problem import Choice, Evaluation, FloatArray, evaluate
from advisor.search.surrogate import Surrogate
from advisor.search.table import IntArray, Table, as_array, evaluations

Score = Callable[[float, Evaluation], float]
"""From divergence and other quantities to what is minimised."""

PAIRED: Final = 64
"""Single changes that are looked at, alone and in pairs: so many of the most promising."""

_ROUNDING: Final = 1e-12
"""Sums of many terms are only so exact; a plan that close to a limit is looked at again."""

_MERGED: Final = 24
"""Better neighbours whose changes are tried together: most of them concern different groups."""

_STEPS: Final = 64
_GAIN: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A plan and its predicted score."""

    choice: Choice
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """What is minimised, and inside which limits."""

    table: Table
    surrogate: Surrogate
    bounds: Mapping[str, float]
    score: Score

    def run(self, begin: Choice) -> Ranked:
        """The local optimum reached from ``begin``, which is returned if nothing is better."""
        known = self.rank([begin])
        best = known[0] if known else Ranked(choice=begin, score=np.inf)
        for _ in range(_STEPS):
            better = best.score - _GAIN * abs(best.score) if np.isfinite(best.score) else np.inf
            found = [near.choice for near in self.neighbours(best.choice) if near.score < better]
            steps = self.rank(_together(best.choice, found[:_MERGED]))
            step = next((near for near in steps if self._fits(near.choice)), None)
            if step is None:
                break
            best = step
        return best

    def _fits(self, choice: Choice) -> bool:
        """Without any tolerance."""
        return within(evaluate(self.table.problem, choice), self.bounds)

    def neighbours(self, choice: Choice) -> list[Ranked]:
        """Plans inside the bounds that differ in one or two groups, the best predicted first."""
        singles = self._singles(choice)
        if not len(singles):
            return []
        origin = self.table.features(as_array([choice]))
        features = self.table.features(singles)
        lost = self.surrogate.divergence_near(features, origin)
        gains = self.surrogate.divergence(origin)[0] - lost
        strain = self._strain(features) - self._strain(origin)[0]
        picked = singles[_promising(gains, strain)]
        return self._rank(np.concatenate([picked, _pairs(choice, picked)]), origin)

    def _strain(self, features: csr_array) -> FloatArray:
        """How much of the limits plans use, summed over the limits."""
        amounts = self.table.amounts(features)
        used = [amounts[name] / bound for name, bound in self.bounds.items() if bound > 0]
        return np.sum(used, axis=0) if used else np.zeros(features.shape[0])

    def rank(self, choices: Sequence[Choice]) -> list[Ranked]:
        """Those inside the bounds, the best predicted first; ties in the order given."""
        if not choices:
            return []
        return self._rank(as_array(choices), self.table.features(as_array(choices[:1])))

    def _rank(self, choices: IntArray, origin: csr_array) -> list[Ranked]:
        """origin: features of a plan that all are near."""
        features = self.table.features(choices)
        amounts = self.table.amounts(features)
        inside = np.ones(len(choices), dtype=np.bool_)
        for name, bound in self.bounds.items():
            inside &= amounts[name] <= bound * (1 + _ROUNDING)
        kept = np.flatnonzero(inside)
        lost = np.maximum(self.surrogate.divergence_near(features[kept], origin), 0.0)
        ranked = [
            Ranked(
                choice=tuple(int(index) for index in choices[at]),
                score=self.score(float(divergence), evaluation),
            )
            for at, divergence, evaluation in zip(
                kept, lost, evaluations(amounts, kept), strict=True
            )
        ]
        return sorted(ranked, key=lambda each: each.score)

    def _singles(self, choice: Choice) -> IntArray:
        found = [
            (*choice[:group], other, *choice[group + 1 :])
            for group, options in enumerate(self.table.problem.candidates)
            for other in range(len(options))
            if other != choice[group]
        ]
        return as_array(found)


def _together(choice: Choice, near: Sequence[Choice]) -> list[Choice]:
    """The neighbours, and their changes one upon the other where they concern other groups."""
    found, now, moved = list(near), list(choice), set[int]()
    for other in near:
        changed = {group for group, index in enumerate(other) if index != choice[group]}
        if not changed & moved:
            moved |= changed
            for group in changed:
                now[group] = other[group]
            found.append(tuple(now))
    return found


def _promising(gains: FloatArray, strain: FloatArray) -> IntArray:
    """At most ``PAIRED`` single changes: those that gain, by what they gain per strain and in all;
    those that make room, by what they lose per room and in all."""
    if gains.size <= PAIRED:
        return np.arange(gains.size)
    rate = np.divide(gains, strain, out=np.full(gains.size, np.inf), where=strain != 0)
    up = np.flatnonzero(gains > 0)
    room = np.flatnonzero((gains <= 0) & (strain < 0))
    free = strain[up] <= 0
    orders = [
        up[np.argsort(np.where(free, -np.inf, -rate[up]), kind="stable")],
        room[np.argsort(rate[room], kind="stable")],
        up[np.argsort(-gains[up], kind="stable")],
        room[np.argsort(-gains[room], kind="stable")],
    ]
    quarters = (3, 3, 1, 1)
    parts = [order[: PAIRED * q // 8] for order, q in zip(orders, quarters, strict=True)]
    return np.unique(np.concatenate(parts))


def _pairs(choice: Choice, picked: IntArray) -> IntArray:
    """Two of the changes at once, of different groups."""
    first, second = np.triu_indices(len(picked), 1)
    moved = picked != as_array([choice])
    apart = ~(moved[first] & moved[second]).any(axis=1)
    first, second = first[apart], second[apart]
    return np.where(moved[first], picked[first], picked[second])
