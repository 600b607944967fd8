"""The optimisation problem a plan solves, without torch: choices, indicators, constraints.

Every group of layers takes exactly one candidate. Quantities (bytes, seconds, divergence, live
bytes at a program point) are sums of a constant, a term per chosen candidate and a term per
indicator that holds. An indicator is a conjunction of literals, so that "this tensor is stored
as int8" (which depends on several layers) is exact both in ``evaluate`` and in the MILP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to run a group: scheme and rounding algorithm."""

    scheme: str
    algorithm: str = "rtn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Literal:
    """True when the group's choice is one of ``candidates`` or the indicator holds.

    Exactly one of ``group`` and ``indicator`` is set; ``negated`` flips the truth.
    """

    group: int | None = None
    candidates: tuple[int, ...] = ()
    indicator: int | None = None
    negated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Indicator:
    """Holds when every literal does; may refer only to indicators before it."""

    name: str
    literals: tuple[Literal, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """constant + sum of per_group[g][choice[g]] + sum of per_indicator[i] where i holds.

    Indicators beyond the length of ``per_indicator`` add nothing.
    """

    constant: float = 0.0
    per_group: tuple[FloatArray, ...]
    per_indicator: FloatArray = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Groups, their candidates, and every quantity as a ``Linear``.

    memory: one entry per program point (weights resident plus tensors alive there); the plan's
    memory is their maximum. divergence: predicted, each term at least 0. energy_j: None when
    the profile publishes no energy figures.
    """

    groups: tuple[str, ...]
    candidates: tuple[tuple[Candidate, ...], ...]
    indicators: tuple[Indicator, ...] = ()
    size_bytes: Linear
    latency_s: Linear
    memory_bytes: tuple[Linear, ...]
    divergence: Linear
    energy_j: Linear | None = None


Choice = tuple[int, ...]
"""Index of the chosen candidate, one per group."""

Knob = str | bool | int | float
Knobs = Mapping[str, Knob]
"""Global settings of a plan, such as how ranges are found, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The quantities of one choice. ``memory_bytes`` is the maximum over program points."""

    size_bytes: float
    memory_bytes: float
    latency_s: float
    divergence: float
    energy_j: float | None = None


def holding(problem: Problem, choice: Choice) -> npt.NDArray[np.bool_]:
    """Which indicators hold under ``choice``; shape (indicators,)."""
    holds = np.zeros(len(problem.indicators), dtype=np.bool_)
    for index, indicator in enumerate(problem.indicators):
        holds[index] = all(_true(literal, choice, holds) for literal in indicator.literals)
    return holds


def evaluate(problem: Problem, choice: Choice) -> Evaluation:
    """Every quantity of ``choice``, exactly (no relaxation)."""
    holds = holding(problem, choice)
    return Evaluation(
        size_bytes=total(problem.size_bytes, choice, holds),
        memory_bytes=max(
            (total(point, choice, holds) for point in problem.memory_bytes), default=0
        ),
        latency_s=total(problem.latency_s, choice, holds),
        divergence=total(problem.divergence, choice, holds),
        energy_j=None if problem.energy_j is None else total(problem.energy_j, choice, holds),
    )


def total(linear: Linear, choice: Choice, holds: npt.NDArray[np.bool_]) -> float:
    """Value of one quantity under ``choice``."""
    chosen = sum(float(terms[index]) for terms, index in zip(linear.per_group, choice, strict=True))
    fixed = float(linear.per_indicator[holds[: linear.per_indicator.size]].sum())
    return linear.constant + chosen + fixed


def _true(literal: Literal, choice: Choice, holds: npt.NDArray[np.bool_]) -> bool:
    if literal.group is not None:
        value = choice[literal.group] in literal.candidates
    else:
        assert literal.indicator is not None  # Literal's contract; keeps the type checkers happy
        value = bool(holds[literal.indicator])
    return value != literal.negated
