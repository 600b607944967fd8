"""Exact assignment: the problem as a mixed-integer linear program, solved by HiGHS.

One binary per (group, candidate), one column per indicator, one row per program point. Two
things keep the numbers in the solver's comfortable range (its tolerances are absolute, about
1e-6, while divergences span 1e-12 to 10 and memory is in gigabytes). Every row is measured from
the least value it can take and divided by what the budget leaves above that. And candidates that
alone cost more than a known solution are removed, after which the objective is scaled again.

Solver: Huangfu and Hall, "Parallelizing the dual revised simplex method", 2018 (HiGHS).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from advisor.errors import AdvisorError, UsageError
from advisor.search.highs import run_highs
from advisor.search.model import (
    BoolArray,
    Columns,
    Row,
    assemble,
    columns_of,
    exclude,
    floored,
    rows_of,
)
from advisor.search.problem import Choice, Evaluation, Problem, evaluate

Masks = Sequence[Sequence[bool] | npt.NDArray[np.bool_]]

QUANTITIES: Final[tuple[str, ...]] = (
    "divergence",
    "latency_s",
    "size_bytes",
    "memory_bytes",
    "energy_j",
)
logger = logging.getLogger("advisor")

GAP: Final = 1e-6
"""Relative gap up to which problems are solved where no other is asked for."""

LARGE: Final = 120
"""Groups above which a gap of ``LARGE_GAP`` will do: no prediction is known better, and proving
the rest takes minutes."""

LARGE_GAP: Final = 1e-3

_TIES: Final[tuple[str, ...]] = ("divergence", "latency_s", "size_bytes")
_TIE_SLACK: Final = 1e-9
_TIE_NODES: Final = 1_000
_ATTEMPTS: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The best choice found and how good it is proven to be.

    value: the minimised quantity of ``choice``, from ``evaluate``. bound: no feasible choice is
    below it. gap: (value - bound) / value, 0 when proven optimal. status "limit": the node limit
    ended the search first.
    """

    choice: Choice
    evaluation: Evaluation
    value: float
    bound: float
    gap: float
    status: Literal["optimal", "limit"]


def solve(
    problem: Problem,
    *,
    minimise: str,
    bounds: Mapping[str, float] | None = None,
    allowed: Masks | None = None,
    relative_gap: float | None = None,
    node_limit: int = 100_000,
) -> Solution | None:
    """The choice with the least ``minimise`` inside ``bounds``, or None when there is none.

    Among choices with an equal objective (within 1e-9 of it) the one with less divergence, then
    less latency, then less size is taken, as far as a small node limit can tell; a least divergence
    that is not proven as sharply is left as it is. ``evaluate`` of
    the choice is inside every bound without any tolerance. Deterministic: no time limit.

    Args:
        problem: what to choose.
        minimise: one of ``QUANTITIES``; memory is the maximum over program points.
        bounds: upper limits by quantity, in the quantity's own unit.
        allowed: per group, which candidates may be taken; None: all.
        relative_gap: stop when the proven bound is this close, relative to the objective; None:
            ``GAP``, or ``LARGE_GAP`` where there are more than ``LARGE`` groups.
        node_limit: stop proving after so many nodes; the gap then says what is left.

    Raises:
        UsageError: unknown quantity, an energy limit without energy figures, or masks of the
            wrong shape.
        AdvisorError: the solver found nothing within ``node_limit``, or failed.
    """
    bounds = dict(bounds or {})
    if relative_gap is None:
        relative_gap = LARGE_GAP if len(problem.groups) > LARGE else GAP
    _check(problem, minimise, bounds)
    mask = _mask(problem, allowed)
    if not problem.groups:
        alone = evaluate(problem, ())
        found = _Found(choice=(), bound=value_of(alone, minimise), is_proven=True)
        return _solution(problem, found, (), minimise) if within(alone, bounds) else None
    rows: dict[str, tuple[Row, ...]] = {name: rows_of(problem, name) for name in QUANTITIES}
    first = _minimise(problem, rows, minimise, bounds, mask, relative_gap, node_limit)
    if first is None:
        return None
    choice, tied = first.choice, minimise
    if minimise == "divergence" and _solution(problem, first, choice, minimise).gap > _TIE_SLACK:
        # Something better may be left; another plan that is as good to 1e-9 would be a coincidence.
        return _solution(problem, first, choice, minimise)
    for tie in (tie for tie in _TIES if tie != minimise):
        reached = value_of(evaluate(problem, choice), tied) * (1 + _TIE_SLACK)
        bounds[tied] = min(bounds.get(tied, np.inf), reached)
        try:
            better = _minimise(problem, rows, tie, bounds, mask, relative_gap, _TIE_NODES)
        except AdvisorError as error:
            logger.debug("ties are left as they are: %s", error)
            break
        choice, tied = choice if better is None else better.choice, tie
    return _solution(problem, first, choice, minimise)


def value_of(evaluation: Evaluation, quantity: str) -> float:
    """One quantity of an evaluation by name.

    Raises:
        UsageError: no such quantity, or energy without energy figures.
    """
    if quantity not in QUANTITIES:
        raise UsageError(f"unknown quantity {quantity!r}; known: {', '.join(QUANTITIES)}")
    value = getattr(evaluation, quantity)
    if value is None:
        raise UsageError(
            "energy is asked for, but this profile publishes no energy figures; drop the energy "
            "limit or use a profile that has them"
        )
    return float(value)


def within(evaluation: Evaluation, bounds: Mapping[str, float]) -> bool:
    """Whether every bound is met, exactly."""
    return all(value_of(evaluation, name) <= bound for name, bound in bounds.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    choice: Choice
    bound: float
    is_proven: bool


def _minimise(
    problem: Problem,
    rows: Mapping[str, tuple[Row, ...]],
    minimise: str,
    bounds: Mapping[str, float],
    mask: BoolArray,
    relative_gap: float,
    node_limit: int,
) -> _Found | None:
    columns = columns_of(problem)
    best: _Found | None = None
    excess: float | None = None
    banned: tuple[Choice, ...] = ()
    for _ in range(_ATTEMPTS):
        reduced = exclude(rows, bounds, columns, mask)
        if reduced is None or _has_empty_group(reduced, columns):
            return best
        mask = reduced
        model = assemble(problem, rows, minimise, bounds, mask, columns, excess, banned)
        answer = run_highs(model, columns, relative_gap, node_limit)
        if answer is None:
            return best
        choice = answer.choice
        evaluation = evaluate(problem, choice)
        if not within(evaluation, bounds):
            # Only the solver's tolerance let it through: forbid exactly this choice.
            banned += (choice,)
            continue
        value = value_of(evaluation, minimise)
        floor = max((floored(r, columns, mask).floor for r in rows[minimise]), default=0.0)
        bound = max(floor, model.offset + model.scale * answer.cost_bound)
        if best is None or value < value_of(evaluate(problem, best.choice), minimise):
            best = _Found(choice=choice, bound=bound, is_proven=answer.is_proven)
        elif bound > best.bound:
            best = replace(best, bound=bound, is_proven=answer.is_proven)
        reduced = exclude(rows, {minimise: value}, columns, mask)
        if value <= floor or value - floor >= model.scale or reduced is None:
            return best
        # The objective is tiny against what it was scaled by: drop what costs more, scale again.
        excess, mask = value - floor, reduced
    if best is None:
        raise AdvisorError(
            f"the solver found {_ATTEMPTS} plans that exceed a limit by its rounding alone "
            f"({', '.join(f'{name} {bound:g}' for name, bound in bounds.items())}) and none that "
            f"keeps it; change the limit slightly"
        )
    return best


def _solution(problem: Problem, found: _Found, choice: Choice, minimise: str) -> Solution:
    evaluation = evaluate(problem, choice)
    value = value_of(evaluation, minimise)
    bound = min(found.bound, value)
    gap = 0.0 if value - bound <= 1e-12 * abs(value) else (value - bound) / abs(value)
    return Solution(
        choice=choice,
        evaluation=evaluation,
        value=value,
        bound=bound,
        gap=gap,
        status="optimal" if found.is_proven else "limit",
    )


def _check(problem: Problem, minimise: str, bounds: Mapping[str, float]) -> None:
    for quantity in (minimise, *bounds):
        value_of(evaluate(problem, tuple(0 for _ in problem.groups)), quantity)
    for name, bound in bounds.items():
        if np.isnan(bound):
            raise UsageError(f"the limit on {name} is not a number; give a number or leave it out")


def _mask(problem: Problem, allowed: Masks | None) -> BoolArray:
    sizes = [len(options) for options in problem.candidates]
    if allowed is None:
        return np.ones(sum(sizes), dtype=np.bool_)
    if [len(mask) for mask in allowed] != sizes:
        raise UsageError(
            f"masks of {[len(mask) for mask in allowed]} candidates do not fit groups of {sizes}; "
            f"give one flag per candidate of every group"
        )
    return np.array([flag for mask in allowed for flag in mask], dtype=np.bool_)


def _has_empty_group(mask: BoolArray, columns: Columns) -> bool:
    return not bool(np.logical_or.reduceat(mask, columns.starts[:-1]).all())
