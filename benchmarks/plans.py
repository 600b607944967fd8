"""Our variants of a model: uniform ones, and plans for every question the comparison asks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from advisor import uniform
from advisor.budget import INT8_SCHEMES, Budget
from advisor.choose import choose
from advisor.doctor import check_cache
from advisor.errors import BudgetError, InfeasibleError
from advisor.evidence import Evidence, gather
from advisor.measure.costs import MeasuredCosts
from advisor.measure.finalists import Contest
from advisor.measure.machine import find_stopwatch
from advisor.measure.measure import kept_costs
from advisor.passes.graph import QuantizedGraph
from advisor.prepare import Prepared, check_deployment, prepare
from advisor.search.feasibility import check_feasible
from advisor.search.measurements import Measured, Report
from advisor.search.problem import Choice, Knobs, Problem, evaluate
from advisor.setting import Deployment, Setting
from advisor.simulate import Simulator
from benchmarks.measure import Variant
from benchmarks.models import Case, Inputs

SPEED_SCHEMES: Final = ("w8a8", "w8a8-dynamic", "w8", "w4-g32", "w4a8-dynamic", "w4a8-dynamic-g32")
"""What is tried on random weights, which say nothing about the finer differences."""

SLACK: Final = "1.05x int8"
"""What the plan may take that is to lose less than all-int8."""

MORE_BYTES: Final = 1.02
"""Of the fastest peer's bytes: what the plan may take that is to be as fast and lose less."""

Budgets = Mapping[str, str | float]

Write = Callable[[str, QuantizedGraph, Path, Inputs], Variant]
"""Writes a quantized graph to a file for inputs of the given sizes, and names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One question to the advisor. for_all_threads: time its plan at every number of threads."""

    name: str
    objective: str
    budget: Budgets | None = None
    for_all_threads: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A plan written to a file, or why there is none.

    schemes: how many groups of layers take each. predicted_s: the plan's latency by the cost model.
    """

    ask: Ask
    variant: Variant | None
    outcome: str
    schemes: Mapping[str, int] = field(default_factory=dict[str, int])
    predicted_s: float | None = None


@dataclass(slots=True, kw_only=True)
class _RememberingSimulator(Simulator):
    """Measures no assignment twice: every question tries the uniform ones again."""

    known: dict[tuple[Choice, str], Measured] = field(
        default_factory=dict[tuple[Choice, str], Measured]
    )

    def measure_all(self, choice: Choice, knobs: Knobs, report: Report) -> Measured:
        key = (choice, repr(sorted(knobs.items())))
        if key not in self.known:
            # To the end, whatever is reported: the next question may want to know.
            self.known[key] = Simulator.measure_all(self, choice, knobs, lambda _: None)
        return self.known[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advisor:
    """``advise`` for many questions about one model: its stages, the first of them run once."""

    case: Case
    evidence: Evidence
    trials: int
    contest: Contest | None
    write: Write

    def ask(self, question: Ask, path: Path) -> Answer:
        """Plan, and write the plan's file; an impossible budget is an answer too."""
        try:
            setting, problem = self.evidence.prepared.setting, self.evidence.problem
            budget = uniform.resolve(Budget.parse(question.budget), setting, problem)
            check_feasible(problem, budget)
        except (BudgetError, InfeasibleError) as error:
            return Answer(ask=question, variant=None, outcome=str(error))
        chosen = choose(
            self.evidence,
            budget=budget,
            objective=question.objective,
            metric=None,
            trials=self.trials,
            seed=0,
            cache=None,
            say=silent,
            contest=self.contest,
        )
        winner = chosen.winner
        graph = self.evidence.simulator.quantized(winner.choice, winner.knobs)
        return Answer(
            ask=question,
            variant=self.write(question.name, graph, path, self.case.example),
            outcome=chosen.outcome,
            schemes=count_schemes(self.evidence.problem, winner.choice),
            predicted_s=predicted_seconds(self.evidence, winner.choice),
        )


@contextmanager
def open_advisor(
    case: Case, *, target: str, threads: int, trials: int, write: Write, runtime: str | None = None
) -> Generator[Advisor]:
    """Everything ``advise`` does before it searches: capture, costs, calibration, sensitivities."""
    deployment = check_deployment(
        target=target, runtime=runtime, batch=case.batch, sequence=None, threads=threads
    )
    stopwatch = find_stopwatch(deployment.profile, deployment.capability)
    kept = check_cache().path
    measure = None
    if stopwatch is not None:
        measure = partial(
            kept_costs, stopwatch=stopwatch, deployment=deployment, cache=kept, say=silent
        )
    prepared = prepare_case(case, deployment, measure)
    contest = None
    if stopwatch is not None:
        contest = Contest(stopwatch=stopwatch, deployment=deployment, cache=kept, say=silent)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        evidence = gather(
            prepared, output=case.kind, loss=None, seed=0, folder=Path(folder), say=silent
        )
        inner = evidence.simulator
        copied = {item.name: getattr(inner, item.name) for item in fields(inner)}
        evidence = replace(evidence, simulator=_RememberingSimulator(**copied))
        yield Advisor(case=case, evidence=evidence, trials=trials, contest=contest, write=write)


def prepare_case(
    case: Case, deployment: Deployment, measure: Callable[[Setting], MeasuredCosts] | None
) -> Prepared:
    """The case captured, with every layer's choices and costs. measure: None models the costs."""
    able = deployment.capability.schemes
    return prepare(
        case.model,
        dict(case.example),
        case.calibration,
        deployment,
        budget=Budget(),
        schemes=None if case.is_trained else [name for name in SPEED_SCHEMES if name in able],
        pins={},
        on_unsupported="keep",
        measure=measure,
    )


def uniform_choices(evidence: Evidence, schemes: Sequence[str] = INT8_SCHEMES) -> dict[str, Choice]:
    """float32, and every one of ``schemes`` wherever a group can take it."""
    known = uniform.uniform_choices(evidence.prepared.setting)
    found: dict[str, Choice] = {"fp32": known["fp32"][0]}
    for scheme in schemes:
        if scheme in known and known[scheme][0] not in found.values():
            found[scheme] = known[scheme][0]
    return found


def write_choice(
    evidence: Evidence, name: str, choice: Choice, path: Path, write: Write, example: Inputs
) -> Variant:
    """The file of one assignment, with the default observer and roundings."""
    return write(name, evidence.simulator.quantized(choice, {"observer": "mse"}), path, example)


def predicted_bytes(evidence: Evidence, choice: Choice) -> float:
    """Bytes of an assignment's constants, as budgets count them: without the graph."""
    return evaluate(evidence.problem, choice).size_bytes


def predicted_seconds(evidence: Evidence, choice: Choice) -> float:
    """Latency of an assignment by the cost model."""
    return evaluate(evidence.problem, choice).latency_s


def count_schemes(problem: Problem, choice: Choice) -> dict[str, int]:
    """How many groups of layers take each scheme."""
    pairs = zip(problem.candidates, choice, strict=True)
    names = [options[index].scheme for options, index in pairs]
    return {name: names.count(name) for name in sorted(set(names))}


def silent(*_: Any) -> None:
    """Progress that nobody follows."""
