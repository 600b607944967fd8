"""Interactions: the quadratic form, local search on it, and measuring what decides."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from advisor.search.descent import Descent
from advisor.search.milp import solve, within
from advisor.search.problem import (
    Candidate,
    Choice,
    Evaluation,
    FloatArray,
    Linear,
    Problem,
    evaluate,
    holding,
)
from advisor.search.products import count_products, with_products
from advisor.search.recheck import recheck
from advisor.search.surrogate import Surrogate, cross_validate, fit_surrogate, ledoit_wolf
from advisor.search.table import as_array, table_of
from tests.unit.problems import enumerate_plans, layered_problem, small_problem


def by_divergence(divergence: float, _: Evaluation) -> float:
    return divergence


def random_scores(rng: np.random.Generator, problem: Problem, count: int = 60) -> FloatArray:
    """Correlated scores whose size follows the problem's own divergences."""
    columns = table_of(problem).columns.total
    common = rng.normal(size=(3, count))
    scores = rng.normal(size=(columns, 3)) @ common + rng.normal(size=(columns, count))
    alone = np.concatenate([*problem.divergence.per_group, problem.divergence.per_indicator])
    power = np.sqrt(np.mean(scores**2, axis=1))
    scaled: FloatArray = scores * (np.sqrt(2 * alone) / power)[:, None]
    return scaled


def columns_of_plan(problem: Problem, choice: Choice) -> list[int]:
    """Written once more: candidates first, then the indicators that hold."""
    sizes = [len(options) for options in problem.candidates]
    taken = [sum(sizes[:group]) + index for group, index in enumerate(choice)]
    return taken + [sum(sizes) + int(i) for i in np.flatnonzero(holding(problem, choice))]


@pytest.mark.parametrize("seed", range(6))
def test_many_plans_at_once_are_what_each_is_alone(seed: int) -> None:
    problem = small_problem(np.random.default_rng(seed))
    plans = enumerate_plans(problem)
    table = table_of(problem)
    features = table.features(as_array([choice for choice, _ in plans]))
    for (_, alone), together in zip(plans, table.evaluate(features), strict=True):
        assert together.size_bytes == pytest.approx(alone.size_bytes, rel=1e-12)
        assert together.memory_bytes == pytest.approx(alone.memory_bytes, rel=1e-12)
        assert together.latency_s == pytest.approx(alone.latency_s, rel=1e-12)
        assert together.divergence == pytest.approx(alone.divergence, rel=1e-12)
        assert together.energy_j == pytest.approx(alone.energy_j, rel=1e-12)
    at = len(plans) // 2
    ones = np.flatnonzero(features.toarray()[at])
    assert ones.tolist() == sorted(columns_of_plan(problem, plans[at][0]))


@pytest.mark.parametrize("seed", range(4))
def test_the_form_is_half_the_mean_square_of_the_summed_scores(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = small_problem(rng)
    scores = random_scores(rng, problem)
    plans = [choice for choice, _ in enumerate_plans(problem)]
    features = table_of(problem).features(as_array(plans))
    whole = fit_surrogate(scores, kept=1.0).divergence(features)
    none = fit_surrogate(scores, kept=0.0).divergence(features)
    half = fit_surrogate(scores, kept=0.5).divergence(features)
    for index, choice in enumerate(plans):
        rows = scores[columns_of_plan(problem, choice)]
        assert whole[index] == pytest.approx(np.mean(rows.sum(axis=0) ** 2) / 2)
        assert none[index] == pytest.approx(np.mean(rows**2, axis=1).sum() / 2)
        assert half[index] == pytest.approx((whole[index] + none[index]) / 2)
    form = replace(
        fit_surrogate(scores, kept=0.5), base=0.3, slopes=rng.normal(size=features.shape[1])
    )
    near = form.divergence_near(features, features[[len(plans) // 2]])
    assert near == pytest.approx(form.divergence(features), rel=1e-9, abs=1e-9)


def test_shrinkage_sees_noise_and_structure() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(40, 200))
    assert ledoit_wolf(noise) < 0.1
    assert ledoit_wolf(rng.normal(size=(40, 1)) @ rng.normal(size=(1, 200)) + 0.3 * noise) > 0.9
    # More samples of the same weak structure are believed more.
    common = rng.normal(size=(40, 2)) * 0.4
    few, many = (
        ledoit_wolf(common @ rng.normal(size=(2, n)) + rng.normal(size=(40, n))) for n in (30, 3000)
    )
    assert few < many
    assert 0 <= ledoit_wolf(np.zeros((5, 10))) <= 1


def test_what_other_samples_confirm_is_kept() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(40, 200))
    assert cross_validate(noise) < 0.1
    strong = rng.normal(size=(40, 1)) @ rng.normal(size=(1, 200)) + 0.1 * noise
    assert cross_validate(strong) > 0.9
    assert cross_validate(np.zeros((5, 10))) == 0.5
    assert cross_validate(np.ones((1, 10))) == 0.5
    # The share that really comes nearest to unseen samples, found by trying them.
    common = rng.normal(size=(40, 2)) * 0.4
    mixing = rng.normal(size=(40, 40)) * 0.1 + np.eye(40)

    def draw(count: int) -> FloatArray:
        scores = common @ rng.normal(size=(2, count)) + mixing @ rng.normal(size=(40, count))
        return np.asarray(scores / np.sqrt((scores**2).mean(axis=1))[:, None])

    few, many = draw(60), draw(200_000)
    off = ~np.eye(40, dtype=bool)
    seen, true = ((z @ z.T / z.shape[1])[off] for z in (few, many))
    shares = np.linspace(0, 1, 101)
    best = shares[np.argmin([((share * seen - true) ** 2).sum() for share in shares])]
    assert cross_validate(few, folds=10) == pytest.approx(best, abs=0.1)


def descend(problem: Problem, form: Surrogate, bounds: dict[str, float]) -> Descent:
    return Descent(table=table_of(problem), surrogate=form, bounds=bounds, score=by_divergence)


@pytest.mark.parametrize("seed", range(8))
def test_descent_ends_where_no_pair_of_changes_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = small_problem(rng, groups=6)
    plans = enumerate_plans(problem)
    form = fit_surrogate(random_scores(rng, problem), kept=1.0)
    features = table_of(problem).features(as_array([choice for choice, _ in plans]))
    lost = dict(
        zip((choice for choice, _ in plans), form.divergence(features).tolist(), strict=True)
    )
    bounds = {"size_bytes": float(np.median([each.size_bytes for _, each in plans]))}
    begin = min((c for c, e in plans if within(e, bounds)), key=lambda c: -lost[c])
    found = descend(problem, form, bounds).run(begin)
    assert found.score == pytest.approx(lost[found.choice])
    assert lost[found.choice] <= lost[begin]
    assert within(evaluate(problem, found.choice), bounds)
    for choice, costs in plans:
        moved = sum(a != b for a, b in zip(choice, found.choice, strict=True))
        if moved <= 2 and within(costs, bounds):
            assert lost[choice] >= lost[found.choice] * (1 - 1e-8)


def test_errors_that_cancel_are_put_together() -> None:
    """What no sum of single losses can see: two layers whose errors undo each other."""
    groups = 4
    problem = Problem(
        groups=tuple("abcd"),
        candidates=tuple((Candidate(scheme="w8"), Candidate(scheme="w4")) for _ in range(groups)),
        size_bytes=Linear(per_group=tuple(np.array([8.0, 4.0]) for _ in range(groups))),
        latency_s=Linear(per_group=tuple(np.zeros(2) for _ in range(groups))),
        memory_bytes=(),
        divergence=Linear(per_group=tuple(np.array([0.0, loss]) for loss in (3.0, 3.0, 2.0, 2.0))),
    )
    error = np.random.default_rng(0).normal(size=(2, 1000))
    error /= np.sqrt(np.mean(error**2, axis=1))[:, None]
    rows = {0: error[0], 1: -error[0], 2: error[1], 3: error[1]}
    scores = np.zeros((2 * groups, 1000))
    for group, row in rows.items():
        scores[2 * group + 1] = row * np.sqrt(2 * problem.divergence.per_group[group][1])
    bounds = {"size_bytes": 24.0}
    exact = solve(problem, minimise="divergence", bounds=bounds)
    assert exact is not None
    assert exact.choice == (0, 0, 1, 1)
    for kept in (0.5, 1.0):
        descent = descend(problem, fit_surrogate(scores, kept=kept), bounds)
        assert descent.run(exact.choice).choice == (1, 1, 0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_the_best_plan_with_interactions_is_proven(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = small_problem(rng, groups=4)
    form = fit_surrogate(random_scores(rng, problem), kept=0.5)
    linear = with_products(problem, form)
    assert len(linear.indicators) == len(problem.indicators) + count_products(problem, form)
    plans = enumerate_plans(problem)
    lost = form.divergence(table_of(problem).features(as_array([choice for choice, _ in plans])))
    for (choice, _), value in zip(plans, lost, strict=True):
        assert evaluate(linear, choice).divergence == pytest.approx(value, rel=1e-9, abs=1e-9)
    for share in (0.2, 0.6):
        bounds = {
            "size_bytes": float(np.quantile([each.size_bytes for _, each in plans], share)),
            "memory_bytes": float(np.quantile([each.memory_bytes for _, each in plans], 0.9)),
        }
        inside = [value for (_, e), value in zip(plans, lost, strict=True) if within(e, bounds)]
        found = solve(linear, minimise="divergence", bounds=bounds)
        if not inside:
            assert found is None
            continue
        assert found is not None
        assert found.value == pytest.approx(min(inside), rel=1e-6, abs=1e-9)
        assert found.bound <= min(inside) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_measuring_alone_corrects_what_decides(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = layered_problem(rng, groups=12, most=5, points=3)
    problem = replace(problem, indicators=(), memory_bytes=(), latency_s=problem.size_bytes)
    problem = replace(
        problem, divergence=Linear(per_group=tuple(t * 1e3 for t in problem.divergence.per_group))
    )
    truth = [terms * np.exp(rng.normal(size=terms.size)) for terms in problem.divergence.per_group]
    whole = sum(float(terms[0]) for terms in problem.size_bytes.per_group)
    bounds = {"size_bytes": 0.25 * whole}
    measured: list[Choice] = []

    def lost(choice: Choice) -> float:
        return sum(float(row[index]) for row, index in zip(truth, choice, strict=True))

    def measure(choices: Sequence[Choice]) -> list[float]:
        measured.extend(choices)
        return [lost(choice) for choice in choices]

    def plans(problem: Problem, _: FloatArray) -> list[Choice]:
        found = solve(problem, minimise="divergence", bounds=bounds)
        assert found is not None
        return [found.choice]

    before = plans(problem, np.zeros(0))[0]
    scores = random_scores(rng, problem)
    checked = recheck(problem, scores, plans, measure, most=25)
    after = plans(checked.problem, np.zeros(0))[0]
    assert lost(after) <= lost(before) * (1 + 1e-9)
    assert 0 < len(checked.factors) <= 25
    # Every measurement changes one group alone, from where nothing is lost.
    assert {sum(index != 0 for index in choice) for choice in measured} <= {0, 1}
    assert len(set(measured)) == len(measured)  # nothing twice
    starts = np.concatenate([[0], np.cumsum([len(o) for o in problem.candidates])])
    for (group, candidate), factor in checked.factors.items():
        now = checked.problem.divergence.per_group[group][candidate]
        assert factor == pytest.approx(
            np.clip(
                truth[group][candidate] / problem.divergence.per_group[group][candidate], 1 / 16, 16
            )
        )
        assert np.mean(checked.scores[starts[group] + candidate] ** 2) / 2 == pytest.approx(now)


def test_nothing_is_measured_where_nothing_is_lost() -> None:
    problem = layered_problem(np.random.default_rng(0), groups=5, most=4, points=2)
    tiny = Linear(per_group=tuple(terms * 1e-9 for terms in problem.divergence.per_group))
    problem = replace(problem, divergence=tiny)
    scores = np.zeros((table_of(problem).columns.total, 4))

    def refuse(_: Sequence[Choice]) -> list[float]:
        raise AssertionError("measured")

    def plans(problem: Problem, _: FloatArray) -> list[Choice]:
        return [choice for choice, _ in itertools.islice(enumerate_plans(problem), 50)]

    assert recheck(problem, scores, plans, refuse, most=10).factors == {}


def test_a_group_without_a_choice_is_not_measured_against_itself() -> None:
    problem = layered_problem(np.random.default_rng(1), groups=5, most=4, points=2)
    problem = replace(problem, indicators=(), memory_bytes=(), latency_s=problem.size_bytes)
    lossy = [np.ones_like(terms) for terms in problem.divergence.per_group]  # all lose alike
    problem = replace(problem, divergence=Linear(per_group=tuple(lossy)))

    def measure(choices: Sequence[Choice]) -> list[float]:
        assert len(set(choices)) == len(choices)
        return [float(sum(choice)) for choice in choices]

    def plans(_: Problem, __: FloatArray) -> list[Choice]:
        return [tuple(int(np.argmin(terms)) for terms in lossy)]

    scores = random_scores(np.random.default_rng(2), problem)
    found = recheck(problem, scores, plans, measure, most=10)
    assert all(candidate != np.argmin(lossy[group]) for group, candidate in found.factors)
