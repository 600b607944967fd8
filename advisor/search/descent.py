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

from advisor.search.milp import within
from advisor.search.problem import Choice, Evaluation, evaluate
from advisor.search.surrogate import Surrogate
from advisor.search.table import IntArray, Table, as_array, evaluations

Score = Callable[[float, Evaluation], float]
"""From divergence and other quantities to what is minimised."""

PAIRED: Final = 96
"""Single changes that are combined into pairs: so many of the most promising."""

_ROUNDING: Final = 1e-12
"""Sums of many terms are only so exact; a plan that close to a limit is looked at again."""

_STEPS: Final = 200
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
            found = (near for near in self.neighbours(best.choice) if near.score < better)
            step = next((near for near in found if self._fits(near.choice)), None)
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
        changes = self._predict(singles) - self._predict(as_array([choice]))[0]
        near = self._pairs(choice, singles, changes)
        return self.rank([tuple(int(i) for i in row) for row in near])

    def rank(self, choices: Sequence[Choice]) -> list[Ranked]:
        """Those inside the bounds, the best predicted first; ties in the order given."""
        if not choices:
            return []
        features = self.table.features(as_array(choices))
        amounts = self.table.amounts(features)
        inside = np.ones(len(choices), dtype=np.bool_)
        for name, bound in self.bounds.items():
            inside &= amounts[name] <= bound * (1 + _ROUNDING)
        kept = np.flatnonzero(inside)
        lost = np.maximum(self.surrogate.divergence(features[kept]), 0.0)
        ranked = [
            Ranked(choice=choices[at], score=self.score(float(divergence), evaluation))
            for at, divergence, evaluation in zip(
                kept, lost, evaluations(amounts, kept), strict=True
            )
        ]
        return sorted(ranked, key=lambda each: each.score)

    def _predict(self, choices: IntArray) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return self.surrogate.divergence(self.table.features(choices))

    def _singles(self, choice: Choice) -> IntArray:
        found = [
            (*choice[:group], other, *choice[group + 1 :])
            for group, options in enumerate(self.table.problem.candidates)
            for other in range(len(options))
            if other != choice[group]
        ]
        return as_array(found)

    def _pairs(
        self,
        choice: Choice,
        singles: IntArray,
        changes: np.ndarray[tuple[int], np.dtype[np.float64]],
    ) -> IntArray:
        """The single changes, and pairs of those that gain most or cost least."""
        order = np.argsort(changes, kind="stable")
        better = order[changes[order] < 0]
        worse = order[changes[order] >= 0]
        half = max(PAIRED // 2, PAIRED - len(worse))
        picked = singles[np.concatenate([better[:half], worse[: PAIRED - len(better[:half])]])]
        base = as_array([choice])
        first, second = np.triu_indices(len(picked), 1)
        moved = picked != base
        apart = ~(moved[first] & moved[second]).any(axis=1)
        first, second = first[apart], second[apart]
        both = np.where(moved[first], picked[first], picked[second])
        return np.concatenate([singles, both])
