"""One plan tried: measured inside the limits, kept in the study's journal, told to the sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from advisor.search.measurements import (
    Abandoned,
    Job,
    Measured,
    Measurements,
    Outcome,
    Report,
    plan_name,
    spell,
)
from advisor.search.milp import value_of, within
from advisor.search.problem import Choice, Evaluation, Knob, Knobs, Problem, evaluate
from advisor.search.region import Region

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as OptunaTrial

Measure = Callable[[Choice, Knobs, Report], Measured]
"""Divergence of a plan under knobs; may say on the way what it is at least."""

Score = Callable[[float, Evaluation], float]
Plan = tuple[Choice, Knobs]
Suggest = Callable[[Sequence["Trial"]], Plan | None]
"""From the trials so far to a plan to try next that is not among them, or None."""

HOPELESS: Final = 1.5
"""A plan that is known to score so many times the best one is not measured to the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One plan tried. number: its place, from 0.

    divergence: measured on all calibration samples, held_out: on the held-out ones; None: not
    measured, because it breaks a limit (``feasible`` False), or abandoned, because it is already
    known to be ``at_least`` so much and cannot win.
    evaluation: predicted quantities. origin "start": passed in; "search": suggested.
    """

    number: int
    choice: Choice
    knobs: Knobs = field(default_factory=dict[str, Knob])
    divergence: float | None
    evaluation: Evaluation
    feasible: bool
    origin: Literal["start", "search"]
    held_out: float | None = None
    at_least: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a study tries plans of, and how. starts: with their knobs, the first ones first."""

    problem: Problem
    region: Region
    starts: tuple[tuple[Choice, Knobs], ...]
    bounds: Mapping[str, float]
    knobs: Mapping[str, tuple[Knob, ...]]
    seed: int
    measure: Measure
    kept: Measurements
    score: Score
    problem_under: Callable[[Knobs], Problem]
    suggest: Suggest | None


def try_plan(
    run: Run,
    study: Study,
    asked: OptunaTrial,
    plan: Plan,
    found: Sequence[Trial],
    beside: Sequence[Plan],
    *,
    is_start: bool,
) -> Trial:
    """Measure a plan, if it is inside the limits, and keep it.

    beside: plans that may be measured while another process measures this one.
    """
    choice, knobs = plan
    worst = math.inf if is_start else HOPELESS * min(map(partial(score_of, run), found))
    record: dict[str, Any] = {
        "number": len(found),
        "choice": list(choice),
        "knobs": dict(knobs),
        "divergence": None,
        "origin": "start" if is_start else "search",
    }
    if within(evaluate(run.problem_under(knobs), choice), run.bounds):
        outcome = _measure(run, plan, beside, worst)
        record["divergence" if outcome.is_whole else "at_least"] = spell(outcome.value)
        record["held_out"] = spell(outcome.held_out)
    asked.set_user_attr("record", record)
    trial = read_trial(run, {"record": record})
    tell(run, study, asked, trial)
    return trial


def _measure(run: Run, plan: Plan, beside: Sequence[Plan], worst: float) -> Outcome:
    """worst: score above which the plan is abandoned."""

    def job(plan: Plan, worst: float) -> Job:
        choice, knobs = plan
        evaluation = evaluate(run.problem_under(knobs), choice)

        def report(at_least: float) -> None:
            if run.score(at_least, evaluation) > worst:
                raise Abandoned(at_least)

        def make() -> Outcome:
            try:
                found = run.measure(choice, knobs, report)
                return Outcome(value=found.divergence, held_out=found.held_out)
            except Abandoned as end:
                return Outcome(value=end.at_least, is_whole=False)

        return make

    inside = [p for p in beside if within(evaluate(run.problem_under(p[1]), p[0]), run.bounds)]
    named = {_name(run, each): job(each, math.inf) for each in inside}
    name = _name(run, plan)
    outcome = run.kept.get(name, {name: job(plan, worst), **named})
    evaluation = evaluate(run.problem_under(plan[1]), plan[0])
    if outcome.is_whole or run.score(outcome.value, evaluation) > worst:
        return outcome
    # Another study gave this plan up where this one would not.
    return run.kept.replace(name, job(plan, worst))


def _name(run: Run, plan: Plan) -> str:
    return plan_name(run.problem, *plan, "all")


def score_of(run: Run, trial: Trial) -> float:
    """What the study minimises; infinite for what was not measured to the end."""
    if trial.divergence is None or not math.isfinite(trial.divergence):
        return math.inf
    return run.score(trial.divergence, trial.evaluation)


def tell(run: Run, study: Study, asked: OptunaTrial, trial: Trial) -> None:
    """Let the sampler learn from a trial."""
    from optuna.trial import TrialState

    for name, bound in run.bounds.items():
        asked.set_constraint(name, value_of(trial.evaluation, name) / bound - 1.0)
    value = score_of(run, trial)
    if math.isfinite(value):
        study.tell(asked, value)
        return
    if trial.at_least is not None:
        asked.report(run.score(trial.at_least, trial.evaluation), step=0)
    study.tell(asked, state=TrialState.PRUNED)


def read_trial(run: Run, attributes: Mapping[str, Any]) -> Trial:
    """A trial by what the journal keeps of it."""
    record = attributes["record"]
    choice = tuple(int(index) for index in record["choice"])
    knobs: Knobs = dict(record["knobs"])
    evaluation = evaluate(run.problem_under(knobs), choice)
    divergence = record["divergence"]
    held_out, at_least = record.get("held_out"), record.get("at_least")
    return Trial(
        number=int(record["number"]),
        choice=choice,
        knobs=knobs,
        divergence=None if divergence is None else float(divergence),
        evaluation=evaluation,
        feasible=within(evaluation, run.bounds),
        origin=record["origin"],
        held_out=None if held_out is None else float(held_out),
        at_least=None if at_least is None else float(at_least),
    )


def is_kept(trial: FrozenTrial) -> bool:
    """Whether the journal has all of it."""
    from optuna.trial import TrialState

    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and "record" in trial.user_attrs
