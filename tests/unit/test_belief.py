"""Beliefs about plans: the covariance written once more, and what measurements do to it."""

from __future__ import annotations

import numpy as np
import pytest

from advisor.budget import Budget
from advisor.foresight import Foresight
from advisor.search.belief import NOISE, OF_COLUMNS, OF_PAIRS, TRUST, believe
from advisor.search.objective import Aim, start
from advisor.search.problem import Choice, Evaluation, FloatArray, Linear, Problem, evaluate
from advisor.search.surrogate import Surrogate, fit_surrogate
from advisor.search.table import as_array, table_of
from advisor.search.trial import Trial
from tests.unit.problems import layered_problem


@pytest.fixture(scope="module")
def problem() -> Problem:
    problem = layered_problem(np.random.default_rng(1), groups=5, most=4, points=1)
    zero = tuple(np.zeros(4) for _ in problem.groups)
    return Problem(
        groups=problem.groups,
        candidates=problem.candidates,
        size_bytes=problem.size_bytes,
        latency_s=Linear(per_group=zero),
        memory_bytes=(),
        divergence=problem.divergence,
    )


@pytest.fixture(scope="module")
def form() -> Surrogate:
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(20, 50)) + rng.normal(size=(1, 50))
    return fit_surrogate(scores * 10 ** rng.uniform(-2, 0, size=(20, 1)))


def covariance(form: Surrogate, plans: list[Choice]) -> FloatArray:
    """By the sums of the definition."""
    moments = form.moments
    columns = [[4 * group + index for group, index in enumerate(plan)] for plan in plans]
    whole = [float(moments[np.ix_(taken, taken)].sum()) for taken in columns]
    found = np.zeros((len(plans), len(plans)))
    for a, first in enumerate(columns):
        for b, second in enumerate(columns):
            both = sorted(set(first) & set(second))
            for i in both:
                shares = moments[i, first].sum() / whole[a] * moments[i, second].sum() / whole[b]
                found[a, b] += OF_COLUMNS**2 * shares
                for j in both:
                    if i < j:
                        pair = 4 * moments[i, i] * moments[j, j] / (whole[a] * whole[b])
                        found[a, b] += OF_PAIRS**2 * pair
    return found


def test_it_is_the_process_of_the_textbook(problem: Problem, form: Surrogate) -> None:
    rng = np.random.default_rng(3)
    plans: list[Choice] = [tuple(int(i) for i in row) for row in rng.integers(4, size=(30, 5))]
    features = table_of(problem).features(as_array(plans))
    prior = np.log(form.divergence(features))
    truth = prior + rng.normal(scale=0.3, size=30)
    belief = believe(form, features[:12], np.exp(truth[:12]))
    mean, deviation = belief.of(features)
    # Rasmussen and Williams, equations 2.23 and 2.24, with an explicit inverse.
    whole = covariance(form, plans)
    inverse = np.linalg.inv(whole[:12, :12] + NOISE**2 * np.eye(12))
    residual = whole[:, :12] @ inverse @ (truth[:12] - prior[:12])
    spread = np.sqrt(np.diag(whole - whole[:, :12] @ inverse @ whole[:12]))
    assert mean == pytest.approx(prior + TRUST * residual, rel=1e-6, abs=1e-6)
    assert deviation == pytest.approx(spread, rel=1e-4, abs=1e-4)
    # What was measured is known, up to the noise and to what is thought luck.
    known = prior[:12] + TRUST * (truth[:12] - prior[:12])
    assert np.abs(mean[:12] - known).max() < 3 * NOISE
    assert deviation[:12].max() <= NOISE * 1.001


def test_the_expected_gain_is_that_of_many_draws(problem: Problem, form: Surrogate) -> None:
    plans: list[Choice] = [(0, 1, 2, 3, 0), (1, 1, 2, 3, 1), (2, 3, 0, 1, 2), (3, 3, 3, 3, 3)]
    table = table_of(problem)
    features = table.features(as_array(plans))
    lost = form.divergence(features)
    belief = believe(form, features[:1], lost[:1] * 0.7)
    mean, deviation = belief.of(features)
    best = float(np.exp(mean[1]))

    def score(divergence: float, _: Evaluation) -> float:
        return divergence

    gains = belief.expected_gain(features, table.evaluate(features), score, best)
    drawn = np.random.default_rng(0).normal(size=200_000)
    for at in range(len(plans)):
        values = np.maximum(best - np.exp(mean[at] + deviation[at] * drawn), 0)
        assert gains[at] == pytest.approx(values.mean(), rel=0.15, abs=1e-3 * best)


def test_a_plan_better_than_foreseen_makes_its_relatives_better(
    problem: Problem, form: Surrogate
) -> None:
    table = table_of(problem)
    seen = table.features(as_array([(3, 3, 0, 0, 0)]))
    near = table.features(as_array([(3, 3, 1, 0, 0)]))
    far = table.features(as_array([(0, 0, 1, 1, 1)]))
    belief = believe(form, seen, form.divergence(seen) / 3)
    for features, least, most in ((near, 0.3, 0.9), (far, 0.95, 1.05)):
        mean, _ = belief.of(features)
        ratio = float(np.exp(mean[0]) / form.divergence(features)[0])
        assert least < ratio < most


def tried(problem: Problem, number: int, choice: Choice, divergence: float) -> Trial:
    return Trial(
        number=number,
        choice=choice,
        divergence=divergence,
        evaluation=evaluate(problem, choice),
        feasible=True,
        origin="search",
    )


@pytest.mark.parametrize(("room", "wanted"), [(1.5, True), (1.0, False)])
def test_what_a_plan_leaves_of_its_budget_is_tried(
    problem: Problem, room: float, wanted: bool
) -> None:
    """Where 1 % is left, wider groups come first; until all that fit were measured."""
    rng = np.random.default_rng(5)
    choice: Choice = (2, 1, 2, 3, 1)
    size = evaluate(problem, choice).size_bytes
    budget = Budget(size_bytes=size * room)
    foresight = Foresight(
        problem=problem,
        scores=rng.normal(size=(20, 50)),
        begun=start(problem, budget, "accuracy"),
        starts=(),
        checked={},
        budget=budget,
        aim=Aim(objective="accuracy"),
    )
    sizes = problem.size_bytes.per_group
    fitting = {
        (*choice[:group], candidate, *choice[group + 1 :])
        for group, row in enumerate(sizes)
        for candidate in range(len(row))
        if 0 < row[candidate] - row[choice[group]] <= size * (room - 1)
    }
    assert bool(fitting) is wanted
    trials = [tried(problem, 0, choice, 1e-3)]
    for number in range(1, len(fitting) + 1):
        found = foresight.suggest(trials)
        assert found is not None
        assert found[0] in fitting - {trial.choice for trial in trials}
        trials.append(tried(problem, number, found[0], 2e-3))
    found = foresight.suggest(trials)
    assert found is None or found[0] not in fitting
