"""Where along the exact front a test of plans begins to fail, in few tests.

A metric's drop grows with the divergence, on the whole: of the plans that cost least at every limit
on the predicted divergence those below some limit pass, and those above it fail. Bisection finds
that limit. What the test says is not quite monotone, so a few plans beyond it are tested too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Final

from advisor.budget import Budget
from advisor.search.milp import value_of
from advisor.search.objective import Start, start
from advisor.search.problem import Choice, Evaluation, Problem

TESTS: Final = 12
"""Plans tested at most: a metric may be expensive."""

RATIO: Final = 1.02
"""Limits on the divergence this close are not told apart."""

FLOOR: Final = 1e-4
"""Divergence, in nats or shares of the power, that no metric is expected to notice."""

SPAN: Final = 1e-3
"""The same as a share of what the cheapest plan loses, where that is less."""

BEYOND: Final = (1.1, 1.25, 1.6, 2.5)
"""Multiples of the least limit that failed at which another plan is tested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """What the tests said.

    tried: whether each plan passed, in the order of the tests. best: of those that passed the one
    of least cost; None: none passed. passed, failed: limits on the predicted divergence between
    which plans of the front begin to fail; None where none passed, or none failed.
    """

    tried: Mapping[Choice, bool]
    best: Choice | None
    passed: float | None
    failed: float | None


def find_boundary(
    problem: Problem,
    budget: Budget,
    first: str,
    passes: Callable[[Choice], bool],
    *,
    most: int = TESTS,
) -> Boundary:
    """Test plans of the exact front of ``first`` against predicted divergence.

    first: "latency_s" or "memory_bytes". passes: the test, asked at most ``most`` times and never
    twice about a plan.

    Raises:
        InfeasibleError: nothing fits the budget.
    """
    costs: dict[Choice, Evaluation] = {}
    tried: dict[Choice, bool] = {}

    def test(plan: Start) -> bool:
        if plan.choice not in tried:
            costs[plan.choice] = plan.evaluation
            tried[plan.choice] = passes(plan.choice)
        return tried[plan.choice]

    def within(limit: float) -> Start:
        return start(problem, budget, "auto", limit, first)

    def end(passed: float | None, failed: float | None) -> Boundary:
        able = [choice for choice, has_passed in tried.items() if has_passed]
        best = min(
            able,
            key=lambda c: (value_of(costs[c], first), costs[c].divergence, c),
            default=None,
        )
        return Boundary(tried=tried, best=best, passed=passed, failed=failed)

    cheapest = start(problem, budget, {"latency_s": "latency"}.get(first, "memory"))
    high = cheapest.evaluation.divergence
    if test(cheapest):
        return end(high, None)
    safest = start(problem, budget, "accuracy")
    low = max(safest.evaluation.divergence, min(FLOOR, SPAN * high))
    passed: float | None = None
    # One test is left for the safest plan as long as nothing has passed.
    while high > low * RATIO and len(tried) < most - (passed is None):
        middle = sqrt(low * high)
        plan = within(middle)
        if test(plan):
            low = passed = middle
        else:
            lost = plan.evaluation.divergence
            high = lost if low < lost < middle else middle
    if passed is None and len(tried) < most and test(safest):
        passed = safest.evaluation.divergence
    for factor in BEYOND:
        if passed is not None and len(tried) < most:
            test(within(high * factor))
    return end(passed, high)
