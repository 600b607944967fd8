"""The search: exact start, uniform baselines, study, and the winner by measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Final

from advisor.budget import Budget
from advisor.decide import alternative, measured, modelled
from advisor.evidence import Evidence, Progress
from advisor.filesize import predict_file_bytes
from advisor.foresight import begin, foresee
from advisor.formats import scheme_named
from advisor.journal import journal_path
from advisor.judge import Judge, aim_by_metric, make_judge, pick_by_metric
from advisor.measure.finalists import Contest
from advisor.metric import Metric
from advisor.partitions import count_partitions
from advisor.plan import Alternative, Drop, Metrics
from advisor.planfile import Measurement
from advisor.race import hold_race, is_raced, plan_of, widened
from advisor.search.ladder import further_starts
from advisor.search.measurements import Measurements
from advisor.search.milp import solve, within
from advisor.search.objective import (
    DIVERGENCE_LIMIT,
    Aim,
    is_measured,
    say_limits,
    select,
    shares_used,
)
from advisor.search.problem import Choice, Evaluation, Knobs, evaluate
from advisor.search.study import refine
from advisor.search.trial import Trial
from advisor.setting import Setting
from advisor.uniform import uniform_choices

KNOBS: Final[dict[str, tuple[str, ...] | tuple[bool, ...]]] = {
    "observer": ("mse", "minmax", "percentile"),
    "bias_correction": (False, True),
    "equalise": (False, True),
}
"""Global settings that the study may change; the first of each is the default."""

OVER: Final = 1.5
"""Multiple of the divergence that the metric allowed, above which it will surely refuse a plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The winning trial and everything it was compared with.

    metric, drop: the winner's, if any. used: share of every limit that it uses, by quantity.
    bounds: limits that predictions are held against; a clock keeps the others. fitting: numbers of
    the trials inside the budget. timings: latencies of the winner and of the uniform plans, where
    whole models were timed.
    """

    winner: Trial
    metric: float | None
    outcome: str
    model_gap: float
    measured_regret: float
    trials: tuple[Trial, ...]
    fitting: frozenset[int]
    baselines: tuple[Alternative, ...]
    used: Mapping[str, float]
    bounds: Mapping[str, float]
    timings: tuple[Measurement, ...] = ()
    drop: Drop | None = None


def choose(
    evidence: Evidence,
    *,
    budget: Budget,
    objective: str,
    metric: Metric | None,
    trials: int,
    seed: int,
    cache: Path | None,
    say: Progress,
    contest: Contest | None = None,
) -> Chosen:
    """Search from the exact start and pick the winner.

    budget: with its latency in seconds (``advisor.uniform.resolve``). cache: folder for resumable
    studies. contest: times whole models before the winner is picked; None: latencies stay
    predicted.
    """
    bounds = budget.bounds()
    journal = None if cache is None else journal_path(cache, evidence, objective)
    kept = Measurements(folder=None if journal is None else journal.with_suffix(".measured"))
    knobs = _offer_knobs(evidence)
    defaults = {name: values[0] for name, values in knobs.items()}
    judge = None if metric is None else make_judge(evidence, metric, objective, budget)
    aim, boundary = Aim(objective=objective), None
    if judge is not None:
        aim, boundary = aim_by_metric(evidence, judge, budget, objective, defaults, kept, say)
    is_aimed = boundary is not None and boundary.best is not None
    foresight = foresee(evidence, budget, aim, trials, kept, say)
    evidence = replace(evidence, problem=foresight.problem)
    problem, begun = foresight.problem, foresight.begun
    if contest is not None and not is_raced(objective, budget):
        contest = None
    uniform = uniform_choices(evidence.prepared.setting)
    searched = budget if contest is None else widened(budget)
    fitting = [c for c, _ in uniform.values() if within(evaluate(problem, c), searched.bounds())]
    ladder = further_starts(problem, begun, aim, bounds, is_timed=contest is not None)
    # What the metric accepts comes first: the study searches around the first start.
    tested = [] if boundary is None else sorted(boundary.tried, key=lambda c: c != boundary.best)
    centre = [*tested[:1], begun.choice] if is_aimed else [begun.choice]
    starts = list(dict.fromkeys([*centre, *foresight.starts, *ladder, *tested, *fitting]))
    variants = _equalised_starts(
        evidence, [*centre, *fitting], aim, budget, is_timed=contest is not None
    )
    # Where there are many schemes, their uniform starts must not leave the study without a trial.
    count = max(trials, len(starts) + len(variants) + trials // 4)
    ended: list[str] = []
    found = refine(
        problem,
        starts,
        evidence.simulator.measure_all,
        budget=searched,
        trials=count,
        seed=seed,
        # Which plans are tried depends on what the metric allows.
        storage_path=journal_path(cache, evidence, repr(aim)) if is_aimed and cache else journal,
        kept=kept,
        knobs=knobs,
        variants=variants,
        score=foresight.score,
        problem_under=lambda knobs: evidence.under(knobs).problem,
        suggest=foresight.suggest,
        on_trial=lambda trial: say("search", trial.number + 1, count),
        on_end=ended.append,
    )
    baselines = _measure_uniform(evidence, uniform, defaults, found, judge, bounds, say)
    race, timed, inside, judged = None, dict[int, float](), found, budget
    if contest is not None:
        predicted = [trial for trial in found if within(trial.evaluation, bounds)]
        race = hold_race(
            evidence,
            contest,
            found,
            _favourite(predicted, objective, aim, judge if is_aimed else None),
            {scheme: choice for scheme, (choice, _) in uniform.items()},
            objective=objective,
            budget=budget,
            most_divergence=_most_divergence(objective, aim, judge, is_aimed=is_aimed),
        )
        judged = race.judged(budget)
        timed, inside = race.by_trial(found, judged), race.inside(found, judged)
    expected = None if evidence.simulator.loss is not None else foresight.predict(found)
    whole = {choice for choice, _ in uniform.values()}
    ceiling = min((_loss(t) for t in inside if t.choice in whole and is_measured(t)), default=inf)
    selection = select(
        inside, aim.objective, aim.measured, timed, expected, ceiling, first=aim.first
    )
    winner, outcome = selection.trial, selection.outcome
    if judge is not None:
        winner, outcome = pick_by_metric(judge, selection, inside, objective, timed, boundary)
    if race is not None:
        outcome += race.remark(winner, judged)
    # Where plans are timed, the clock keeps the latency limit.
    timed_s = None if race is None else race.seconds.get(plan_of(winner))
    used = shares_used(winner.evaluation, judged.bounds(), timed_s)
    outcome += say_limits(used)
    for reason in ended:
        outcome += f"; the search ended after {len(found)} of {count} trials: {reason}"
    return Chosen(
        winner=winner,
        metric=None if judge is None else judge.value(winner.choice, winner.knobs),
        used=used,
        bounds={n: b for n, b in bounds.items() if race is None or n != "latency_s"},
        drop=None if judge is None else judge.lost(winner),
        outcome=outcome,
        model_gap=begun.model_gap,
        measured_regret=selection.measured_regret,
        trials=found,
        fitting=frozenset(trial.number for trial in inside if is_measured(trial)),
        baselines=baselines,
        timings=() if race is None else race.records(winner),
    )


def costs_of(setting: Setting, choice: Choice, evaluation: Evaluation) -> Metrics:
    """Modelled costs of a choice."""
    return modelled(
        evaluation,
        setting.profile.name,
        setting.latency_source,
        file_bytes=predict_file_bytes(setting, choice, evaluation.size_bytes),
        partitions=count_partitions(setting, choice),
    )


def metrics_of(
    evidence: Evidence,
    choice: Choice,
    evaluation: Evaluation,
    divergence: float | None,
    metric: float | None,
) -> Metrics:
    """Modelled costs and measured losses of a choice."""
    costs = costs_of(evidence.prepared.setting, choice, evaluation)
    seen = measured_of(evidence, divergence, metric)
    return replace(costs, divergence=seen.divergence, metric=seen.metric)


def measured_of(evidence: Evidence, divergence: float | None, metric: float | None) -> Metrics:
    """Measured losses, with what they were measured on."""
    samples = evidence.simulator.data.held_out.samples
    return measured(
        divergence,
        metric,
        samples,
        synthetic=evidence.synthetic,
        is_loss=evidence.simulator.loss is not None,
    )


def _favourite(trials: Sequence[Trial], objective: str, aim: Aim, judge: Judge | None) -> Trial:
    """The trial that wins by what is known before plans are timed; where the metric is a limit,
    one that is known to pass."""
    if judge is not None:
        passing = [t for t in trials if judge.is_known(t) and not judge.has_failed(t)]
        if any(map(is_measured, passing)):
            return select(passing, objective, inf).trial
    return select(trials, aim.objective, aim.measured, first=aim.first).trial


def _most_divergence(objective: str, aim: Aim, judge: Judge | None, *, is_aimed: bool) -> float:
    """Measured divergence above which a plan need not be timed."""
    if is_aimed:
        return OVER * aim.measured
    return DIVERGENCE_LIMIT if objective == "auto" and judge is None else inf


def _offer_knobs(evidence: Evidence) -> dict[str, tuple[str, ...] | tuple[bool, ...]]:
    """The knobs that can change something for this model and runtime."""
    setting = evidence.prepared.setting
    idle: set[str] = set() if setting.regions.sites else {"observer"}
    if evidence.equalised is None:
        idle.add("equalise")
    return {name: values for name, values in KNOBS.items() if name not in idle}


def _equalised_starts(
    evidence: Evidence,
    starts: Sequence[Choice],
    aim: Aim,
    budget: Budget,
    *,
    is_timed: bool,
) -> tuple[tuple[Choice, Knobs], ...]:
    """The starts in which a layer reads integers, and the best ones for the equalised model.

    Equalisation can turn a hopeless integer plan into a good one, which suggestions around the
    exact start, made from what the model loses as it is, would hardly come upon.
    """
    if evidence.equalised is None:
        return ()
    problem, bounds = evidence.equalised.problem, budget.bounds()
    best: list[Choice] = []
    if solve(problem, minimise="divergence", bounds=bounds) is not None:
        begun = begin(problem, budget, aim)
        further = further_starts(problem, begun, aim, bounds, is_timed=is_timed)
        best = [begun.choice, *further]
    found: list[tuple[Choice, Knobs]] = []
    for choice in dict.fromkeys([*starts, *best]):
        assignment = evidence.simulator.assignment(choice)
        if any(scheme_named(layer.scheme).activation for layer in assignment.values()):
            found.append((choice, {"equalise": True}))
    return tuple(found)


def _measure_uniform(
    evidence: Evidence,
    uniform: Mapping[str, tuple[Choice, int]],
    knobs: Knobs,
    trials: Sequence[Trial],
    judge: Judge | None,
    bounds: Mapping[str, float],
    say: Progress,
) -> tuple[Alternative, ...]:
    known = {t.choice: t.held_out for t in trials if dict(t.knobs) == dict(knobs)}
    results: list[Alternative] = []
    for index, (scheme, (choice, unable)) in enumerate(uniform.items()):
        say("baselines", index, len(uniform))
        divergence = known.get(choice)
        if divergence is None:
            divergence = evidence.simulator.measure(choice, knobs)
        value = None if judge is None else judge.value(choice, knobs)
        evaluation = evaluate(evidence.problem, choice)
        note = f"{unable} layers cannot take {scheme} and stay in float" if unable else ""
        results.append(
            alternative(
                evidence.prepared.setting,
                scheme,
                choice,
                metrics_of(evidence, choice, evaluation, divergence, value),
                fits=within(evaluation, bounds),
                note=note,
            )
        )
    say("baselines", len(uniform), len(uniform))
    return tuple(results)


def _loss(trial: Trial) -> float:
    return float("inf") if trial.divergence is None else trial.divergence
