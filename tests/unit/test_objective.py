"""The rules that pick the starting plan and the final one, against enumeration."""

import numpy as np
import pytest

from advisor.budget import Budget
from advisor.errors import InfeasibleError, UsageError
from advisor.search.objective import (
    LATENCY_SLACK,
    pareto_front,
    say_limits,
    score_for,
    select,
    shares_used,
    start,
)
from advisor.search.problem import Evaluation
from advisor.search.trial import Trial
from tests.unit.problems import enumerate_plans, small_problem


@pytest.mark.parametrize("seed", range(6))
def test_the_start_is_the_best_plan_by_prediction(seed: int) -> None:
    problem = small_problem(np.random.default_rng([seed, 5]))
    plans = [e for _, e in enumerate_plans(problem)]
    bound = float(np.median([e.memory_bytes for e in plans]))
    fitting = [e for e in plans if e.memory_bytes <= bound]
    limit = float(np.quantile([e.divergence for e in fitting], 0.3))
    budget = Budget(memory_bytes=bound)
    auto = start(problem, budget, "auto", limit)
    accurate = [e for e in fitting if e.divergence <= limit]
    near = min(e.latency_s for e in accurate) * (1 + LATENCY_SLACK)
    least = min(e.divergence for e in accurate if e.latency_s <= near)
    assert auto.evaluation.latency_s <= near
    assert auto.evaluation.divergence == pytest.approx(least)
    assert "fastest plan" in auto.outcome
    strict = start(problem, budget, "auto", min(e.divergence for e in fitting) / 2)
    best = min(e.divergence for e in fitting)
    assert strict.evaluation.divergence == pytest.approx(best)
    assert "no plan is predicted within" in strict.outcome
    assert start(problem, budget, "accuracy").evaluation.divergence == pytest.approx(best)
    fastest = start(problem, budget, "latency")
    assert fastest.evaluation.latency_s == pytest.approx(min(e.latency_s for e in fitting))
    smallest = start(problem, budget, "memory")
    assert smallest.evaluation.memory_bytes == min(e.memory_bytes for e in fitting)
    assert smallest.model_gap <= 1e-6


def test_objectives_and_limits_that_cannot_be_used() -> None:
    problem = small_problem(np.random.default_rng(0))
    with pytest.raises(UsageError, match="did you mean 'latency'"):
        start(problem, Budget(), "latncy")
    with pytest.raises(UsageError, match="not a number above 0"):
        start(problem, Budget(), "auto", 0.0)
    with pytest.raises(UsageError, match="known: auto"):
        select([], "speed!")
    with pytest.raises(UsageError, match="none of 0 trials"):
        select([])
    with pytest.raises(InfeasibleError, match="smallest possible size"):
        start(problem, Budget(size_bytes=1e-3))


def _trials(seed: int, count: int = 40) -> list[Trial]:
    rng = np.random.default_rng(seed)
    return [
        Trial(
            number=number,
            choice=(int(rng.integers(3)), number),
            divergence=None if rng.random() < 0.1 else float(rng.integers(1, 6)) / 100,
            evaluation=Evaluation(
                size_bytes=float(rng.integers(1, 5)),
                memory_bytes=float(rng.integers(1, 5)),
                latency_s=float(rng.integers(1, 5)),
                divergence=0.0,
            ),
            feasible=bool(rng.random() < 0.8),
            origin="search",
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_no_trial_beats(seed: int) -> None:
    trials = _trials(seed)
    points = {
        t.number: (
            t.divergence,
            t.evaluation.memory_bytes,
            t.evaluation.latency_s,
            t.evaluation.size_bytes,
        )
        for t in trials
        if t.feasible and t.divergence is not None
    }
    array = np.array(list(points.values()), dtype=float)
    unbeaten = {
        tuple(row)
        for row in array
        if not any((other <= row).all() and (other < row).any() for other in array)
    }
    front = pareto_front(trials)
    assert {points[t.number] for t in front} == unbeaten
    assert len(front) == len(unbeaten)
    assert [t.number for t in front] == sorted(t.number for t in front)


@pytest.mark.parametrize("seed", range(5))
def test_the_final_trial_follows_the_objective(seed: int) -> None:
    trials = _trials(seed)
    usable = [t for t in trials if t.feasible and t.divergence is not None]
    divergences = [t.divergence or 0.0 for t in usable]
    fast = select(trials, "auto", 0.03).trial
    assert (fast.divergence or 1) <= 0.03
    assert fast.evaluation.latency_s == min(
        t.evaluation.latency_s for t in usable if (t.divergence or 1) <= 0.03
    )
    strict = select(trials, "auto", 0.005)
    assert strict.trial.divergence == min(divergences)
    assert strict.measured_regret == 0.0
    assert "no plan measured within divergence 0.005" in strict.outcome
    assert select(trials, "accuracy").trial.divergence == min(divergences)
    quick = select(trials, "latency")
    assert quick.trial.evaluation.latency_s == min(t.evaluation.latency_s for t in usable)
    assert quick.measured_regret == pytest.approx(
        (quick.trial.divergence or 0.0) - min(divergences)
    )
    lean = select(trials, "memory").trial
    assert lean.evaluation.memory_bytes == min(t.evaluation.memory_bytes for t in usable)


@pytest.mark.parametrize("objective", ["auto", "accuracy", "latency", "memory"])
def test_the_study_minimises_what_the_final_choice_goes_by(objective: str) -> None:
    trials = [t for t in _trials(9) if t.feasible and t.divergence is not None]
    begun = Evaluation(size_bytes=1.0, memory_bytes=1.0, latency_s=1.0, divergence=0.03)
    score = score_for(objective, 0.03, begun)
    best = min(score(t.divergence or 0.0, t.evaluation) for t in trials)
    chosen = select(trials, objective, 0.03).trial
    assert score(chosen.divergence or 0.0, chosen.evaluation) == best


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("objective", ["auto", "latency"])
def test_timed_seconds_decide_where_plans_were_timed(seed: int, objective: str) -> None:
    """The winner is timed, within the slack of the fastest timed one, and loses least there."""
    trials = _trials(seed)
    usable = [t for t in trials if t.feasible and t.divergence is not None]
    rng = np.random.default_rng(seed)
    timed = {t.number: float(rng.uniform(1.0, 1.1)) for t in usable[::2]}
    limit = float(np.median([t.divergence or 0.0 for t in usable]))
    found = select(trials, objective, limit, timed)
    entrants = [t for t in usable if t.number in timed]
    if objective == "auto":
        entrants = [t for t in entrants if (t.divergence or 0.0) <= limit]
    slowest = min(timed[t.number] for t in entrants) * (1 + LATENCY_SLACK)
    near = [t for t in entrants if timed[t.number] <= slowest]
    assert found.trial in near
    assert found.trial.divergence == min(t.divergence or 0.0 for t in near)
    assert "timed" in found.outcome


def test_among_plans_that_are_near_prediction_has_a_say() -> None:
    def trial(number: int, divergence: float) -> Trial:
        cost = Evaluation(size_bytes=90.0, memory_bytes=1.0, latency_s=1.0, divergence=divergence)
        return Trial(
            number=number,
            choice=(number,),
            divergence=divergence,
            evaluation=cost,
            feasible=True,
            origin="search",
        )

    trials = [trial(0, 0.100), trial(1, 0.110), trial(2, 0.149), trial(3, 0.20)]
    predicted = {0: 0.30, 1: 0.10, 2: 0.09, 3: 0.001}

    def picked(ceiling: float = np.inf) -> int:
        found = select(trials, "accuracy", predicted=predicted, ceiling=ceiling)
        return found.trial.number

    assert select(trials, "accuracy").trial.number == 0
    # Of those within half of the least, the least geometric mean: 0.173, 0.105, 0.116.
    assert picked() == 1
    assert select(trials, "accuracy", predicted=predicted).measured_regret == pytest.approx(0.01)
    # Never worse, as measured, than what the ceiling stands for.
    assert picked(ceiling=0.105) == 0
    assert picked(ceiling=0.05) == 0
    assert select(trials, "latency", predicted=predicted).trial.number == 1
    assert select(trials, "auto", 0.105, predicted=predicted).trial.number == 0


def test_limits_that_bind_are_named() -> None:
    cost = Evaluation(size_bytes=99.5, memory_bytes=40.0, latency_s=1.0, divergence=0.1)
    said = say_limits(shares_used(cost, {"size_bytes": 100.0, "memory_bytes": 80.0}))
    assert said == "; of the budget: size 99.5% used and binding, memory 50.0% used"
    assert say_limits(shares_used(cost, {})) == ""
    # A clock knows better than the prediction of 1 second.
    timed = shares_used(cost, {"latency_s": 2.0}, timed_s=1.99)
    assert say_limits(timed) == "; of the budget: latency 99.5% used and binding"
