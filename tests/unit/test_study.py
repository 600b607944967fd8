"""The study: reproducible, resumable, inside the budget."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from advisor.budget import Budget
from advisor.errors import OutputError, UsageError
from advisor.search.measurements import Measured, Measurements, Outcome, Report
from advisor.search.milp import within
from advisor.search.objective import (
    Start,
    pareto_front,
    select,
    start,
)
from advisor.search.problem import Choice, Knob, Problem, evaluate
from advisor.search.region import region_around, repair
from advisor.search.study import PATIENCE, refine
from advisor.search.trial import HOPELESS, Trial
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
    reports: bool = False
    parts: int = 0
    calls: list[Call] = field(default_factory=list[Call])

    def __call__(self, choice: Choice, knobs: Mapping[str, Knob], report: Report) -> Measured:
        self.calls.append((choice, tuple(sorted(knobs.items()))))
        if len(self.calls) in self.dies_at:
            raise KeyboardInterrupt
        bent = 1 + 0.3 * np.sin(sum((i + 1) * c for i, c in enumerate(choice)))
        gain = 0.8 if knobs.get("observer") == "mse" else 1.0
        found = float(evaluate(self.problem, choice).divergence * bent * gain)
        for share in (0.25, 0.5, 0.75, 1.0) if self.reports else ():
            report(share * found)
            self.parts += 1
        return Measured(divergence=found, held_out=found)


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


def test_every_second_plan_is_the_one_that_is_suggested(
    problem: Problem, budget: Budget, exact: Start, tmp_path: Path
) -> None:
    def suggest(trials: Sequence[Trial]) -> tuple[Choice, Mapping[str, Knob]] | None:
        """One group of the last plan moved, to where the region need not reach; then nothing."""
        moved = (*trials[-1].choice[:-1], (trials[-1].choice[-1] + 3) % 8)
        tried = {trial.choice for trial in trials}
        return None if moved in tried or len(trials) > 7 else (moved, trials[0].knobs)

    def run(journal: Path | None, dies_at: tuple[int, ...] = ()) -> tuple[Trial, ...]:
        return refine(
            problem,
            [exact.choice],
            Bench(problem, dies_at=dies_at),
            budget=budget,
            trials=10,
            seed=3,
            knobs=KNOBS,
            suggest=suggest,
            storage_path=journal,
        )

    whole = run(None)
    assert len(whole) == 10
    for trial in (whole[1], whole[3], whole[5]):
        assert trial.choice[-1] == (whole[trial.number - 1].choice[-1] + 3) % 8
        assert (trial.origin, trial.knobs) == ("search", whole[0].knobs)
    journal = tmp_path / "study.log"
    for dies_at in (3, 2):
        with pytest.raises(KeyboardInterrupt):
            run(journal, (dies_at,))
    assert run(journal) == whole


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
    reasons: list[str] = []
    trials = refine(
        problem, [anchor], bench, budget=Budget(), trials=50, seed=0, on_end=reasons.append
    )
    assert len(reasons) == 1
    assert "no more plans" in reasons[0] or "nothing new" in reasons[0]
    region = region_around(problem, anchor, 1, 16)
    points = {(a, b) for a in region.options[0] for b in region.options[1]}
    assert {trial.choice for trial in trials} <= points
    assert len(bench.calls) == len(trials) <= len(points)
    assert refine(problem, [anchor], bench, budget=budget, trials=5, seed=0, max_groups=0)


def test_a_plan_that_cannot_win_is_not_measured_to_the_end(
    problem: Problem, budget: Budget, exact: Start, tmp_path: Path
) -> None:
    starts = [exact.choice, uniform(problem, 7)]
    plain, bench = Bench(problem), Bench(problem, reports=True)

    def run(bench: Bench, journal: Path | None = None) -> tuple[Trial, ...]:
        return refine(
            problem, starts, bench, budget=budget, trials=24, seed=1, storage_path=journal
        )

    whole, cut = run(plain), run(bench, tmp_path / "study.log")
    given_up = [trial for trial in cut if trial.at_least is not None]
    assert given_up
    assert bench.parts < 4 * len(bench.calls) - len(given_up)
    for trial in given_up:
        lost = Bench(problem)(trial.choice, trial.knobs, lambda _: None).divergence
        known = [t.divergence for t in cut[: trial.number] if t.divergence is not None]
        assert trial.divergence is None
        assert trial.origin == "search"
        assert HOPELESS * min(known) < (trial.at_least or 0) <= lost
    # Starts are what others are compared with: they are measured whatever they lose.
    assert all(trial.divergence is not None for trial in cut[:2])
    assert select(cut).trial.divergence is not None
    # Until the first is given up the searches are one; then the sampler knows less.
    first = given_up[0].number
    assert cut[:first] == whole[:first]
    assert run(bench, tmp_path / "study.log") == cut


def test_processes_that_share_a_folder_measure_nothing_twice(
    problem: Problem, budget: Budget, exact: Start, tmp_path: Path
) -> None:
    program = """
import sys, time
from pathlib import Path
import numpy as np
from advisor.budget import Budget
from advisor.search.measurements import Measured, Measurements
from advisor.search.objective import start
from advisor.search.problem import evaluate
from advisor.search.study import refine
from tests.unit.problems import layered_problem

problem = layered_problem(np.random.default_rng(2), groups=10, points=5)
budget = Budget(size_bytes=float(sys.argv[2]))
folder = Path(sys.argv[1])

def measure(choice, knobs, report):
    with open(folder / "calls.txt", "a") as file:
        file.write(f"{choice}\\n")
    time.sleep(0.05)
    lost = evaluate(problem, choice).divergence * (1 + 0.3 * np.sin(sum(choice)))
    return Measured(divergence=lost, held_out=lost)

starts = [start(problem, budget, "accuracy").choice, *((i,) * 10 for i in range(3, 8))]
trials = refine(
    problem, starts, measure, budget=budget, trials=14, seed=0,
    storage_path=folder / "study.log", kept=Measurements(folder=folder / "measured"),
)
print([(t.choice, t.divergence) for t in trials])
"""
    arguments = [sys.executable, "-c", program, str(tmp_path), str(budget.bounds()["size_bytes"])]
    both = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1] != ""
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    assert len(calls) == len(set(calls)) >= 10
    assert not list((tmp_path / "measured").glob("*.lock"))
    # A third one that comes later measures nothing at all.
    again = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
    assert again.stdout == said[0]
    assert (tmp_path / "calls.txt").read_text().splitlines() == calls


def test_what_a_dead_process_was_measuring_is_measured_again(tmp_path: Path) -> None:
    kept = Measurements(folder=tmp_path / "new" / "measured")

    def dies() -> Outcome:
        raise KeyboardInterrupt

    made: list[str] = []

    def make(name: str) -> Outcome:
        made.append(name)
        return Outcome(value=float("nan") if name == "odd" else float(len(name)))

    with pytest.raises(KeyboardInterrupt):
        kept.get("first", {"first": dies})
    jobs = {name: partial(make, name) for name in ("first", "odd")}
    assert kept.get("first", jobs) == kept.get("first", jobs) == Outcome(value=5.0)
    assert str(kept.get("odd", jobs).value) == "nan"
    assert made == ["first", "odd"]
    assert Measurements().get("first", jobs).value == 5.0
    for path in (tmp_path / "new" / "measured").glob("*.json"):
        path.write_text("{}")
    with pytest.raises(OutputError, match="is not a measurement"):
        kept.get("first", jobs)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose a folder"):
        Measurements(folder=tmp_path / "file" / "measured").get("first", jobs)


def test_a_search_that_finds_nothing_better_says_so_and_ends(
    problem: Problem, budget: Budget, exact: Start, tmp_path: Path
) -> None:
    def measure(choice: Choice, knobs: Mapping[str, Knob], report: Report) -> Measured:
        lost = 0.0 if choice == exact.choice else 1.0
        return Measured(divergence=lost, held_out=lost)

    for _ in range(2):  # the second time from the journal
        reasons: list[str] = []
        trials = refine(
            problem,
            [exact.choice],
            measure,
            budget=budget,
            trials=60,
            seed=0,
            storage_path=tmp_path / "study.log",
            on_end=reasons.append,
        )
        assert reasons == [f"the last {PATIENCE} plans were no better"]
        assert len(trials) == 1 + PATIENCE


def test_a_measurement_that_is_not_finite_is_kept_and_never_chosen(
    problem: Problem, budget: Budget, exact: Start, tmp_path: Path
) -> None:
    def measure(choice: Choice, knobs: Mapping[str, Knob], report: Report) -> Measured:
        lost = float("nan") if choice == exact.choice else 1.0
        return Measured(divergence=lost, held_out=lost)

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
