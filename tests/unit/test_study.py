"""The study: reproducible, resumable, inside the budget."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from advisor.budget import Budget
from advisor.errors import OutputError, UsageError
from advisor.search.milp import within
from advisor.search.objective import (
    Start,
    pareto_front,
    select,
    start,
)
from advisor.search.problem import Choice, Problem, evaluate
from advisor.search.region import region_around, repair
from advisor.search.study import Knob, Trial, refine
from tests.unit.problems import enumerate_plans, layered_problem

KNOBS: dict[str, tuple[Knob, ...]] = {
    "observer": ("minmax", "mse"),
    "bias_correction": (False, True),
}


Call = tuple[Choice, tuple[tuple[str, Knob], ...]]


@dataclass
class Bench:
    """Stands for the simulation: predictions bent by an interaction; counts its calls."""

    problem: Problem
    dies_at: tuple[int, ...] = ()
    calls: list[Call] = field(default_factory=list[Call])

    def __call__(self, choice: Choice, knobs: Mapping[str, Knob]) -> float:
        self.calls.append((choice, tuple(sorted(knobs.items()))))
        if len(self.calls) in self.dies_at:
            raise KeyboardInterrupt
        bent = 1 + 0.3 * np.sin(sum((i + 1) * c for i, c in enumerate(choice)))
        gain = 0.8 if knobs.get("observer") == "mse" else 1.0
        return float(evaluate(self.problem, choice).divergence * bent * gain)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return layered_problem(np.random.default_rng(2), groups=10, points=5)


@pytest.fixture(scope="module")
def budget(problem: Problem) -> Budget:
    whole = float(sum(terms[0] for terms in problem.size_bytes.per_group))
    return Budget(size_bytes=0.22 * whole)


@pytest.fixture(scope="module")
def exact(problem: Problem, budget: Budget) -> Start:
    return start(problem, budget, "accuracy")


def uniform(problem: Problem, index: int) -> Choice:
    return tuple(index for _ in problem.groups)


def test_same_seed_same_trials_and_another_seed_others(
    problem: Problem, budget: Budget, exact: Start
) -> None:
    runs = [
        refine(
            problem,
            [exact.choice],
            Bench(problem),
            budget=budget,
            trials=10,
            seed=seed,
            knobs=KNOBS,
        )
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert [trial.number for trial in runs[0]] == list(range(10))


def test_starts_come_first_and_the_budget_is_respected(
    problem: Problem, budget: Budget, exact: Start
) -> None:
    bench = Bench(problem)
    seen: list[Trial] = []
    starts = [exact.choice, uniform(problem, 0), uniform(problem, 7), exact.choice]
    trials = refine(
        problem,
        starts,
        bench,
        budget=budget,
        trials=12,
        seed=0,
        knobs=KNOBS,
        on_trial=seen.append,
    )
    assert tuple(seen) == trials
    assert [t.choice for t in trials if t.origin == "start"] == starts[:3]
    assert all(t.knobs == {"observer": "minmax", "bias_correction": False} for t in trials[:3])
    # All in float does not fit: recorded, not measured.
    assert (trials[1].feasible, trials[1].divergence) == (False, None)
    assert len(bench.calls) == len(set(bench.calls)) == 11
    for trial in trials:
        assert trial.evaluation == evaluate(problem, trial.choice)
        assert trial.feasible == within(trial.evaluation, budget.bounds())
    assert all(t.feasible for t in trials if t.origin == "search")
    assert min(t.divergence for t in trials if t.divergence is not None) < (
        trials[0].divergence or 0
    )


def test_variants_follow_the_starts(problem: Problem, budget: Budget, exact: Start) -> None:
    variants = [(exact.choice, {"observer": "mse"}), (uniform(problem, 7), {"observer": "mse"})]
    trials = refine(
        problem,
        [exact.choice],
        Bench(problem),
        budget=budget,
        trials=6,
        seed=0,
        knobs=KNOBS,
        variants=variants,
    )
    assert [t.origin for t in trials] == ["start"] * 3 + ["search"] * 3
    assert [t.choice for t in trials[1:3]] == [choice for choice, _ in variants]
    assert all(t.knobs == {"observer": "mse", "bias_correction": False} for t in trials[1:3])
    assert len({(t.choice, tuple(t.knobs.items())) for t in trials}) == 6


@pytest.mark.parametrize("dies_at", [(1,), (4,), (2, 5, 7)])
def test_a_killed_study_ends_like_an_uninterrupted_one(
    problem: Problem, budget: Budget, exact: Start, tmp_path: Path, dies_at: tuple[int, ...]
) -> None:
    starts = [exact.choice, uniform(problem, 7)]
    whole = refine(problem, starts, Bench(problem), budget=budget, trials=10, seed=3, knobs=KNOBS)
    bench = Bench(problem, dies_at=dies_at)
    journal = tmp_path / "new folder" / "study.log"

    def run() -> tuple[Trial, ...]:
        return refine(
            problem,
            starts,
            bench,
            budget=budget,
            trials=10,
            seed=3,
            knobs=KNOBS,
            storage_path=journal,
        )

    for _ in dies_at:
        with pytest.raises(KeyboardInterrupt):
            run()
    # A process killed while it writes leaves half a line.
    with journal.open("ab") as file:
        file.write(b'{"op_code": 5, "worker')
    assert run() == whole
    measured = len(bench.calls)
    assert run() == whole
    assert len(bench.calls) == measured == 10 + len(dies_at)


def test_a_finished_study_goes_on_where_it_stopped(
    problem: Problem, budget: Budget, exact: Start, tmp_path: Path
) -> None:
    bench = Bench(problem)
    journal = tmp_path / "study.log"

    def run(trials: int, seed: int) -> tuple[Trial, ...]:
        return refine(
            problem,
            [exact.choice],
            bench,
            budget=budget,
            trials=trials,
            seed=seed,
            storage_path=journal,
        )

    four, eight = run(4, 0), run(8, 0)
    assert eight[:4] == four
    assert len(bench.calls) == 8
    assert run(3, 0) == four[:3]
    run(4, 1)  # another seed is another study
    assert len(bench.calls) == 12


@pytest.mark.parametrize("torn", [b'{"op_code":0,"wor', b""])
def test_a_journal_cut_at_its_first_line_starts_anew(
    problem: Problem, exact: Start, tmp_path: Path, torn: bytes
) -> None:
    journal = tmp_path / "study.log"
    journal.write_bytes(torn)
    assert refine(
        problem,
        [exact.choice],
        Bench(problem),
        budget=Budget(),
        trials=1,
        seed=0,
        storage_path=journal,
    )


def test_a_small_region_is_searched_once_and_no_more(budget: Budget) -> None:
    problem = layered_problem(np.random.default_rng(0), groups=2, points=2)
    bench = Bench(problem)
    anchor = (3, 3)
    trials = refine(problem, [anchor], bench, budget=Budget(), trials=50, seed=0)
    region = region_around(problem, anchor, 1, 16)
    points = {(a, b) for a in region.options[0] for b in region.options[1]}
    assert {trial.choice for trial in trials} <= points
    assert len(bench.calls) == len(trials) <= len(points)
    assert refine(problem, [anchor], bench, budget=budget, trials=5, seed=0, max_groups=0)


def test_a_measurement_that_is_not_finite_is_kept_and_never_chosen(
    problem: Problem, budget: Budget, exact: Start, tmp_path: Path
) -> None:
    def measure(choice: Choice, knobs: Mapping[str, Knob]) -> float:
        return float("nan") if choice == exact.choice else 1.0

    for _ in range(2):
        trials = refine(
            problem,
            [exact.choice],
            measure,
            budget=budget,
            trials=3,
            seed=0,
            storage_path=tmp_path / "study.log",
        )
        assert str(trials[0].divergence) == "nan"
        assert trials[0] not in pareto_front(trials)
        assert select(trials).trial.number == 1


def test_bad_arguments_are_refused(problem: Problem, exact: Start, tmp_path: Path) -> None:
    bench, free = Bench(problem), Budget()
    with pytest.raises(UsageError, match="a plan to start from"):
        refine(problem, [], bench, budget=free, trials=1, seed=0)
    with pytest.raises(UsageError, match="at least 1"):
        refine(problem, [exact.choice], bench, budget=free, trials=0, seed=0)
    with pytest.raises(UsageError, match="candidates per group"):
        refine(problem, [(0,)], bench, budget=free, trials=1, seed=0)
    with pytest.raises(UsageError, match="has no values"):
        refine(problem, [exact.choice], bench, budget=free, trials=1, seed=0, knobs={"a": ()})
    other = tmp_path / "notes.txt"
    other.write_text("not a journal\n")
    with pytest.raises(OutputError, match="not a search journal"):
        refine(problem, [exact.choice], bench, budget=free, trials=1, seed=0, storage_path=other)
    with pytest.raises(OutputError, match="cannot keep its journal"):
        refine(
            problem,
            [exact.choice],
            bench,
            budget=free,
            trials=1,
            seed=0,
            storage_path=other / "study.log",
        )
    assert bench.calls == []
    assert other.read_text() == "not a journal\n"


def test_repair_finds_the_nearest_plan_inside_the_budget() -> None:
    problem = layered_problem(np.random.default_rng(3), groups=4, points=3)
    plans = enumerate_plans(problem)
    limit = {"size_bytes": float(np.quantile([e.size_bytes for _, e in plans], 0.4))}
    anchor = start(problem, Budget.within(limit), "accuracy").choice
    region = region_around(problem, anchor, 2, 16)
    inside = [c for c, e in plans if region.contains(c) and within(e, limit)]
    outside = [c for c, e in plans if region.contains(c) and not within(e, limit)]
    assert len(outside) > 15
    for wanted in outside[:: len(outside) // 15]:
        found = repair(problem, region, wanted, limit)
        assert found in inside

        def changed(choice: Choice, wanted: Choice = wanted) -> int:
            return sum(a != b for a, b in zip(choice, wanted, strict=True))

        assert changed(found) == min(changed(choice) for choice in inside)
    assert repair(problem, region, anchor, limit) == anchor
    assert repair(problem, region, anchor, {"size_bytes": 1.0}) is None


def test_a_region_keeps_the_anchor_and_moves_few_groups(problem: Problem, exact: Start) -> None:
    region = region_around(problem, exact.choice, 1, 4)
    assert region.contains(exact.choice)
    assert sum(len(options) > 1 for options in region.options) == 4
    assert all(len(options) <= 3 for options in region.options)


def test_the_search_loads_no_torch_and_importing_it_loads_no_optuna() -> None:
    program = (
        "import sys, advisor.budget, advisor.search.problem\n"
        "assert 'scipy' not in sys.modules\n"
        "import advisor.search.objective, advisor.search.study\n"
        "assert 'optuna' not in sys.modules\n"
        "import optuna\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
