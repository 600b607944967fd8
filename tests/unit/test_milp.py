"""The exact assignment against enumeration of every choice."""

import ctypes
import os
from dataclasses import replace

import numpy as np
import pytest

from advisor.errors import UsageError
from advisor.search.milp import LARGE, LARGE_GAP, QUANTITIES, solve, value_of, within
from advisor.search.problem import Candidate, Linear, Problem, evaluate
from advisor.streams import withheld_lines
from tests.unit.problems import enumerate_plans, layered_problem, small_problem


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("wide", [False, True])
def test_solve_agrees_with_enumeration(seed: int, wide: bool) -> None:
    rng = np.random.default_rng([seed, wide])
    problem = small_problem(rng, wide=wide)
    plans = enumerate_plans(problem)
    for minimise in QUANTITIES:
        # Limits that some plan meets exactly, or misses by a tenth.
        _, anchor = plans[int(rng.integers(len(plans)))]
        limited = [name for name in QUANTITIES if rng.random() < 0.5]
        factors = {name: 1.0 if rng.random() < 0.6 else 0.9 for name in limited}
        bounds = {name: value_of(anchor, name) * factors[name] for name in limited}
        fitting = [e for _, e in plans if within(e, bounds)]
        found = solve(problem, minimise=minimise, bounds=bounds, relative_gap=0.0)
        if not fitting:
            assert found is None
            continue
        assert found is not None
        best = min(value_of(e, minimise) for e in fitting)
        assert within(found.evaluation, bounds)
        assert found.evaluation == evaluate(problem, found.choice)
        assert found.value == value_of(found.evaluation, minimise)
        assert found.value == pytest.approx(best, rel=2e-9)
        assert found.bound <= best * (1 + 1e-9)
        assert found.gap <= 1e-6
        if wide:
            continue
        assert solve(problem, minimise=minimise, bounds=bounds, relative_gap=0.0) == found


@pytest.mark.parametrize("seed", range(8))
def test_ties_go_to_less_divergence_then_latency(seed: int) -> None:
    problem = small_problem(np.random.default_rng([seed, 7]), groups=6)
    plans = [e for _, e in enumerate_plans(problem)]
    least = solve(problem, minimise="memory_bytes")
    assert least is not None
    tied = [e for e in plans if e.memory_bytes == least.value]
    assert least.evaluation.divergence == min(e.divergence for e in tied)
    flat = replace(
        problem,
        divergence=Linear(per_group=tuple(np.zeros(len(c)) for c in problem.candidates)),
    )
    fastest = solve(flat, minimise="divergence")
    assert fastest is not None
    assert fastest.evaluation.latency_s == pytest.approx(min(e.latency_s for e in plans))


def test_every_limit_of_a_plan_is_kept_when_it_is_met_exactly() -> None:
    rng = np.random.default_rng(5)
    problem = layered_problem(rng, groups=12)
    for _ in range(5):
        choice = tuple(int(i) for i in rng.integers(0, 8, size=12))
        target = evaluate(problem, choice)
        bounds = {
            name: value_of(target, name) for name in ("memory_bytes", "size_bytes", "latency_s")
        }
        found = solve(problem, minimise="divergence", bounds=bounds)
        assert found is not None
        assert within(found.evaluation, bounds)
        assert found.value <= target.divergence


def test_tiny_divergences_are_told_apart_beside_large_ones() -> None:
    # The optimum is 2e-12 where one candidate alone costs 10: a plain model rounds both to 0.
    terms = (np.array([1e-12, 3e-12, 10.0]), np.array([2e-12, 1e-12, 5.0]))
    zeros = tuple(np.zeros(3) for _ in terms)
    bytes_ = (np.array([4e9, 1e9, 1e8]), np.array([4e9, 4e9, 1e8]))
    problem = Problem(
        groups=("a", "b"),
        candidates=(tuple(Candidate(scheme=s) for s in "xyz"),) * 2,
        size_bytes=Linear(per_group=bytes_),
        latency_s=Linear(per_group=zeros),
        memory_bytes=(Linear(per_group=bytes_),),
        divergence=Linear(per_group=terms),
    )
    free = solve(problem, minimise="divergence", relative_gap=0.0)
    assert free is not None
    assert free.choice == (0, 1)
    tight = solve(problem, minimise="divergence", bounds={"memory_bytes": 8e9 - 1})
    assert tight is not None
    assert tight.choice == (1, 1)
    assert tight.value == 4e-12


def test_masks_leave_only_what_is_allowed() -> None:
    problem = small_problem(np.random.default_rng(11), groups=4)
    rng = np.random.default_rng(12)
    allowed = [rng.random(len(options)) < 0.6 for options in problem.candidates]
    for mask in allowed:
        mask[int(rng.integers(mask.size))] = True
    plans = [
        e for c, e in enumerate_plans(problem) if all(m[i] for m, i in zip(allowed, c, strict=True))
    ]
    found = solve(problem, minimise="latency_s", allowed=allowed)
    assert found is not None
    assert found.value == pytest.approx(min(e.latency_s for e in plans))
    nothing = [np.zeros_like(allowed[0]), *allowed[1:]]
    assert solve(problem, minimise="latency_s", allowed=nothing) is None


def test_two_hundred_groups_of_eight_are_solved_and_proven() -> None:
    problem = layered_problem(np.random.default_rng(1), groups=200, points=20)
    whole = float(sum(terms[0] for terms in problem.size_bytes.per_group))
    bounds = {"memory_bytes": 0.25 * whole, "latency_s": 0.05}
    found = solve(problem, minimise="divergence", bounds=bounds, relative_gap=1e-4)
    assert found is not None
    assert found.status == "optimal"
    assert found.gap <= 1e-4
    assert within(found.evaluation, bounds)


def test_five_hundred_groups_of_eight_are_solved_to_a_thousandth() -> None:
    problem = layered_problem(np.random.default_rng(2), groups=500, points=20)
    whole = float(sum(terms[0] for terms in problem.size_bytes.per_group))
    bounds = {"size_bytes": 0.2 * whole}
    found = solve(problem, minimise="divergence", bounds=bounds, relative_gap=1e-3)
    assert found is not None
    assert 0 <= found.gap <= 1e-3
    assert within(found.evaluation, bounds)
    assert found.bound <= found.value == pytest.approx(found.evaluation.divergence)
    # The bound of a knapsack without boundaries, by its Lagrangian: no plan can be below it.
    sizes, losses = problem.size_bytes.per_group, problem.divergence.per_group
    lagrangian = max(
        sum(float((d + price * s).min()) for d, s in zip(losses, sizes, strict=True))
        - price * bounds["size_bytes"]
        for price in np.geomspace(1e-16, 1e-6, 400)
    )
    assert lagrangian <= found.value * (1 + 1e-9)
    assert found.bound >= lagrangian * (1 - 1e-3)


def test_large_problems_are_solved_to_a_thousandth_by_themselves_and_small_ones_exactly() -> None:
    """Under four limits that no plan meets by chance; the gap that is said is the proven one."""
    for groups, gap in ((60, 1e-6), (LARGE + 80, LARGE_GAP)):
        problem = layered_problem(np.random.default_rng(4), groups=groups, points=10)
        whole = evaluate(problem, (0,) * groups)
        shares = {"size_bytes": 0.2, "memory_bytes": 0.21, "latency_s": 0.42, "energy_j": 0.24}
        bounds = {name: share * value_of(whole, name) for name, share in shares.items()}
        found = solve(problem, minimise="divergence", bounds=bounds)
        assert found is not None
        assert within(found.evaluation, bounds)
        assert found.gap == pytest.approx((found.value - found.bound) / found.value, abs=1e-12)
        assert found.gap <= gap


def test_a_problem_without_groups_has_one_plan() -> None:
    alone = Linear(constant=5.0, per_group=())
    problem = Problem(
        groups=(),
        candidates=(),
        size_bytes=alone,
        latency_s=alone,
        memory_bytes=(alone,),
        divergence=Linear(per_group=()),
    )
    found = solve(problem, minimise="size_bytes", bounds={"size_bytes": 5.0})
    assert found is not None
    assert (found.choice, found.value, found.gap) == ((), 5.0, 0.0)
    assert solve(problem, minimise="size_bytes", bounds={"size_bytes": 4.0}) is None


def test_what_cannot_be_asked_is_refused() -> None:
    problem = replace(small_problem(np.random.default_rng(0)), energy_j=None)
    with pytest.raises(UsageError, match="known: divergence, latency_s"):
        solve(problem, minimise="speed")
    with pytest.raises(UsageError, match="no energy figures"):
        solve(problem, minimise="size_bytes", bounds={"energy_j": 1.0})
    with pytest.raises(UsageError, match="do not fit groups"):
        solve(problem, minimise="size_bytes", allowed=[[True]])
    with pytest.raises(UsageError, match="not a number"):
        solve(problem, minimise="size_bytes", bounds={"latency_s": float("nan")})


def test_stray_lines_of_the_solver_stay_out_of_standard_output(
    capfd: pytest.CaptureFixture[str],
) -> None:
    libc = ctypes.CDLL("ucrtbase" if os.name == "nt" else None)
    with withheld_lines("Highs"):
        libc.puts(b"HighsMipSolverData: a diagnostic")
        libc.puts(b"a result of somebody else")
    assert capfd.readouterr().out == "a result of somebody else\n"
