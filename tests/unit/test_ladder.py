"""Starts besides the first, against enumeration."""

import numpy as np
import pytest

from advisor.budget import Budget
from advisor.search.ladder import LATENCY_SHARES, SLACK_SHARES, further_starts
from advisor.search.objective import LATENCY_SLACK, Aim, start
from advisor.search.problem import evaluate
from tests.unit.problems import enumerate_plans, small_problem


@pytest.mark.parametrize("seed", range(5))
def test_latency_starts_lose_least_within_the_slack(seed: int) -> None:
    problem = small_problem(np.random.default_rng([seed, 7]), groups=6)
    plans = [e for _, e in enumerate_plans(problem)]
    begun = start(problem, Budget(), "latency")
    found = further_starts(problem, begun, Aim(objective="latency"), {}, is_timed=False)
    for share, choice in zip(SLACK_SHARES, found, strict=False):
        limit = begun.evaluation.latency_s * (1 + LATENCY_SLACK * share)
        least = min(e.divergence for e in plans if e.latency_s <= limit * (1 + 1e-9))
        assert evaluate(problem, choice).divergence == pytest.approx(least)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("objective", ["accuracy", "memory"])
def test_starts_on_both_sides_of_a_latency_limit_that_is_timed(seed: int, objective: str) -> None:
    problem = small_problem(np.random.default_rng([seed, 8]), groups=6)
    plans = [e for _, e in enumerate_plans(problem)]
    limit = float(np.median([e.latency_s for e in plans]))
    budget = Budget(latency_s=limit)
    begun = start(problem, budget, objective)
    bounds = budget.bounds()
    untimed = further_starts(problem, begun, Aim(objective=objective), bounds, is_timed=False)
    assert all(evaluate(problem, choice).latency_s <= limit * (1 + 1e-9) for choice in untimed)
    timed = further_starts(problem, begun, Aim(objective=objective), bounds, is_timed=True)
    able = [[e for e in plans if e.latency_s <= limit * (s + 1e-9)] for s in LATENCY_SHARES]
    assert len(timed) == 1 + sum(map(bool, able))
    for inside, choice in zip(filter(None, able), timed[1:], strict=True):
        found = evaluate(problem, choice)
        if objective == "accuracy":
            assert found.divergence == pytest.approx(min(e.divergence for e in inside))
        else:
            assert found.memory_bytes == pytest.approx(min(e.memory_bytes for e in inside))
