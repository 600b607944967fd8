"""Impossible budgets: the numbers in the message against enumeration, and the layers it names."""

import re
from dataclasses import replace

import numpy as np
import pytest

from advisor.budget import Budget
from advisor.errors import InfeasibleError, UsageError
from advisor.search.feasibility import check_feasible, largest_contributors
from advisor.search.milp import QUANTITIES, solve, value_of, within
from advisor.search.problem import Candidate, Linear, Problem
from tests.unit.problems import enumerate_plans, layered_problem, small_problem


def test_a_budget_that_some_plan_meets_passes() -> None:
    problem = small_problem(np.random.default_rng(0))
    _, target = enumerate_plans(problem)[3]
    check_feasible(problem, Budget())
    check_feasible(problem, Budget(accuracy_drop=0.01))
    check_feasible(problem, Budget(memory_bytes=target.memory_bytes, latency_s=target.latency_s))


@pytest.mark.parametrize("seed", range(12))
def test_feasible_exactly_when_enumeration_says_so(seed: int) -> None:
    rng = np.random.default_rng([seed, 3])
    problem = small_problem(rng)
    plans = [e for _, e in enumerate_plans(problem)]
    names = ("memory_bytes", "size_bytes", "latency_s")
    bounds = {name: float(np.quantile([value_of(e, name) for e in plans], 0.2)) for name in names}
    budget = Budget.within(bounds)
    if any(within(e, bounds) for e in plans):
        check_feasible(problem, budget)
        return
    with pytest.raises(InfeasibleError) as caught:
        check_feasible(problem, budget)
    works = re.search(r'budget that works: "(.*?)"', str(caught.value))
    assert works is not None
    relaxed = Budget.parse(works[1])
    assert any(within(e, relaxed.bounds()) for e in plans)
    check_feasible(problem, relaxed)


@pytest.mark.parametrize("name", [name for name in QUANTITIES if name != "divergence"])
def test_the_smallest_possible_value_is_named(name: str) -> None:
    problem = small_problem(np.random.default_rng(4))
    least = min(value_of(e, name) for _, e in enumerate_plans(problem))
    with pytest.raises(InfeasibleError, match="smallest possible") as caught:
        check_feasible(problem, Budget.within({name: least * 0.9}))
    works = re.search(r'budget that works: "(.*?)"', str(caught.value))
    assert works is not None
    (smallest,) = Budget.parse(works[1]).bounds().values()
    assert least <= smallest <= least * 1.001
    assert caught.value.exit_code == 3


def test_the_layers_that_hold_it_up_are_named_with_their_share() -> None:
    sizes = (np.array([600.0]), np.array([200.0, 250.0]), np.array([100.0, 1.0]))
    zeros = tuple(np.zeros(terms.size) for terms in sizes)
    problem = Problem(
        groups=("head", "body", "tail"),
        candidates=(
            (Candidate(scheme="fp32"),),
            (Candidate(scheme="w8"), Candidate(scheme="fp16")),
            (Candidate(scheme="fp32"), Candidate(scheme="w4-g32")),
        ),
        size_bytes=Linear(constant=199.0, per_group=sizes),
        latency_s=Linear(per_group=zeros),
        memory_bytes=(
            Linear(constant=300.0, per_group=sizes),
            Linear(constant=100.0, per_group=sizes),
        ),
        divergence=Linear(per_group=zeros),
    )
    with pytest.raises(InfeasibleError) as caught:
        check_feasible(problem, Budget(size_bytes=500.0), labels=("lm_head", "blocks.0", "out"))
    message = str(caught.value)
    assert "size 500 B" in message
    assert "smallest possible size is 1 KB" in message
    assert "lm_head (fp32, the only scheme allowed) 60%, blocks.0 (w8) 20%" in message
    assert "drop pins" in message
    assert largest_contributors(problem, "memory_bytes", (0, 1, 0)) == (
        (0, 600.0),
        (1, 250.0),
        (2, 100.0),
    )


def test_limits_that_fail_only_together_are_told_apart() -> None:
    problem = layered_problem(np.random.default_rng(1), groups=20, points=10)
    leanest = solve(problem, minimise="memory_bytes")
    fastest = solve(problem, minimise="latency_s")
    assert leanest is not None
    assert fastest is not None
    budget = Budget(memory_bytes=leanest.value * 1.02, latency_s=fastest.value * 1.02)
    with pytest.raises(InfeasibleError, match="alone, but not all together") as caught:
        check_feasible(problem, budget)
    message = str(caught.value)
    assert "Within the other limits the smallest possible memory is" in message
    assert "Within the other limits the smallest possible latency is" in message


def test_an_energy_limit_needs_energy_figures() -> None:
    problem = replace(small_problem(np.random.default_rng(0)), energy_j=None)
    with pytest.raises(UsageError, match="no energy figures"):
        check_feasible(problem, Budget(energy_j=1.0))
