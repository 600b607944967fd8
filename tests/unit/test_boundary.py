"""Where plans of the exact front begin to fail, against enumeration."""

from __future__ import annotations

import numpy as np
import pytest

from advisor.budget import Budget
from advisor.errors import InfeasibleError
from advisor.search.boundary import RATIO, TESTS, find_boundary
from advisor.search.milp import value_of, within
from advisor.search.objective import LATENCY_SLACK
from advisor.search.problem import Choice, evaluate
from tests.unit.problems import enumerate_plans, layered_problem, small_problem


@pytest.mark.parametrize("first", ["latency_s", "memory_bytes"])
@pytest.mark.parametrize("seed", range(6))
def test_the_best_plan_below_a_limit_is_found(seed: int, first: str) -> None:
    """A test that is all divergence: the cheapest plan of those that pass, enumerated."""
    problem = small_problem(np.random.default_rng([seed, 11]), groups=6)
    plans = [e for _, e in enumerate_plans(problem)]
    budget = Budget(size_bytes=float(np.quantile([e.size_bytes for e in plans], 0.8)))
    inside = [e for e in plans if within(e, budget.bounds())]
    slack = 1 + LATENCY_SLACK if first == "latency_s" else 1.0
    for share in (0.02, 0.1, 0.3, 0.6, 1.0):
        limit = float(np.quantile([e.divergence for e in inside], share))
        asked: list[Choice] = []

        def passes(choice: Choice, limit: float = limit, asked: list[Choice] = asked) -> bool:
            asked.append(choice)
            return evaluate(problem, choice).divergence <= limit

        found = find_boundary(problem, budget, first, passes)
        assert len(asked) == len(set(asked)) == len(found.tried) <= TESTS
        assert found.best is not None
        own = evaluate(problem, found.best)
        assert within(own, budget.bounds())
        assert own.divergence <= limit
        near = [value_of(e, first) for e in inside if e.divergence <= limit / RATIO**2]
        assert value_of(own, first) <= min(near, default=np.inf) * slack * (1 + 1e-9)
        assert found.failed is None or found.failed > limit


def test_nothing_passes_and_everything_does() -> None:
    problem = small_problem(np.random.default_rng(3), groups=6)
    none = find_boundary(problem, Budget(), "latency_s", lambda _: False)
    assert none.best is None
    assert none.passed is None
    least = min(e.divergence for _, e in enumerate_plans(problem))
    # The plan that loses least was among those tested: there is no better hope.
    assert min(evaluate(problem, choice).divergence for choice in none.tried) == least
    assert len(none.tried) <= TESTS
    everything = find_boundary(problem, Budget(), "latency_s", lambda _: True)
    assert len(everything.tried) == 1
    assert everything.failed is None
    assert everything.best is not None
    fastest = min(e.latency_s for _, e in enumerate_plans(problem))
    assert evaluate(problem, everything.best).latency_s == pytest.approx(fastest)
    with pytest.raises(InfeasibleError):
        find_boundary(problem, Budget(size_bytes=1e-3), "latency_s", lambda _: True)


def test_a_test_that_is_not_monotone_is_looked_at_beyond_its_first_failure() -> None:
    """Every other plan of the front fails; more than the bisection's own are tested, twelve at
    most, and what comes back has passed."""
    problem = layered_problem(np.random.default_rng(0), groups=20, points=4)
    count = 0

    def passes(_: Choice) -> bool:
        nonlocal count
        count += 1
        return count % 2 == 0

    found = find_boundary(problem, Budget(), "memory_bytes", passes)
    assert found.best is not None
    assert found.tried[found.best]
    assert len(found.tried) <= TESTS
    able = [evaluate(problem, c).memory_bytes for c, passed in found.tried.items() if passed]
    assert evaluate(problem, found.best).memory_bytes == min(able)
