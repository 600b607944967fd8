"""Many choices of a problem at once, as sparse rows over candidates and indicators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from advisor.search.model import Columns, Row, columns_of, rows_of
from advisor.search.problem import Choice, Evaluation, FloatArray, Literal, Problem

IntArray = npt.NDArray[np.int64]

_QUANTITIES = ("size_bytes", "latency_s", "memory_bytes", "divergence", "energy_j")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A problem's quantities as rows of coefficients. Columns: candidates, then indicators."""

    problem: Problem
    columns: Columns
    rows: dict[str, tuple[Row, ...]]

    def features(self, choices: IntArray) -> csr_array:
        """1 for every candidate taken and every indicator that holds.

        choices: shape (plans, groups). Result: shape (plans, candidates + indicators).
        """
        plans, groups = choices.shape
        holds = self._holding(choices)
        plan, indicator = np.nonzero(holds)
        each: IntArray = np.arange(plans, dtype=np.int64)
        rows = np.concatenate([np.repeat(each, groups), plan])
        taken = (choices + self.columns.starts[:-1]).ravel()
        columns = np.concatenate([taken, self.columns.candidates + indicator])
        ones = np.ones(columns.size)
        return csr_array((ones, (rows, columns)), shape=(plans, self.columns.total))

    def amounts(self, features: csr_array) -> dict[str, FloatArray]:
        """Every quantity of every plan, up to the rounding of sums; those without rows are left
        out."""
        found: dict[str, FloatArray] = {}
        for name, rows in self.rows.items():
            if rows:
                coefficients = np.stack([row.coefficients for row in rows], axis=1)
                constants = np.array([row.constant for row in rows])
                found[name] = (features @ coefficients + constants).max(axis=1)
        return found

    def evaluate(self, features: csr_array) -> list[Evaluation]:
        """The same as one ``Evaluation`` per plan."""
        return evaluations(self.amounts(features), range(features.shape[0]))

    def _holding(self, choices: IntArray) -> npt.NDArray[np.bool_]:
        plans = len(choices)
        holds = np.ones((plans, len(self.problem.indicators)), dtype=np.bool_)
        for index, indicator in enumerate(self.problem.indicators):
            for literal in indicator.literals:
                holds[:, index] &= _truth(literal, choices, holds)
        return holds


def table_of(problem: Problem) -> Table:
    """The rows of ``problem``."""
    return Table(
        problem=problem,
        columns=columns_of(problem),
        rows={name: rows_of(problem, name) for name in _QUANTITIES},
    )


def evaluations(amounts: Mapping[str, FloatArray], plans: Iterable[int]) -> list[Evaluation]:
    """The quantities of some plans, out of ``Table.amounts``."""

    def of(name: str, plan: int) -> float:
        return float(amounts[name][plan]) if name in amounts else 0.0

    return [
        Evaluation(
            size_bytes=of("size_bytes", plan),
            memory_bytes=of("memory_bytes", plan),
            latency_s=of("latency_s", plan),
            divergence=of("divergence", plan),
            energy_j=of("energy_j", plan) if "energy_j" in amounts else None,
        )
        for plan in plans
    ]


def as_array(choices: Sequence[Choice]) -> IntArray:
    """Choices as an array of shape (plans, groups)."""
    return np.array(choices, dtype=np.int64)


def _truth(
    literal: Literal, choices: IntArray, holds: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    value: npt.NDArray[np.bool_]
    if literal.group is not None:
        value = np.isin(choices[:, literal.group], literal.candidates)
    else:
        assert literal.indicator is not None  # Literal's contract
        value = holds[:, literal.indicator]
    return ~value if literal.negated else value
