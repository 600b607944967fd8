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
from advisor.foresight import foresee
from advisor.formats import scheme_named
from advisor.journal import journal_path
from advisor.measure.finalists import Contest
from advisor.metric import Metric, evaluate_metric, metric_values, say_drop
from advisor.partitions import count_partitions
from advisor.plan import Alternative, Metrics
from advisor.planfile import Measurement
from advisor.race import hold_race, is_raced, widened
from advisor.search.ladder import further_starts
from advisor.search.measurements import Measurements
from advisor.search.milp import solve, within
from advisor.search.objective import (
    DIVERGENCE_LIMIT,
    Selection,
    is_measured,
    pareto_front,
    say_limits,
    score_for,
    select,
    start,
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

DROP_LIMIT: Final = 0.01
"""Share of the metric that objective "auto" accepts to lose when no accuracy_drop is given."""

FINALISTS: Final = 8
"""Trials on which the user's metric is run; it may be expensive."""


_BEST: Final = {
    "auto": "fastest",
    "accuracy": "least divergence",
    "latency": "least latency",
    "memory": "least memory",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The winning trial and everything it was compared with.

    metric: the winner's, if any. fitting: numbers of the trials inside the budget. timings:
    latencies of the winner and of the uniform plans, where whole models were timed.
    """

    winner: Trial
    metric: float | None
    outcome: str
    model_gap: float
    measured_regret: float
    trials: tuple[Trial, ...]
    fitting: frozenset[int]
    baselines: tuple[Alternative, ...]
    timings: tuple[Measurement, ...] = ()


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
    foresight = foresee(evidence, budget, objective, trials, kept, say)
    evidence = replace(evidence, problem=foresight.problem)
    problem, begun = foresight.problem, foresight.begun
    if contest is not None and not is_raced(objective, budget):
        contest = None
    uniform = uniform_choices(evidence.prepared.setting)
    searched = budget if contest is None else widened(budget)
    fitting = [c for c, _ in uniform.values() if within(evaluate(problem, c), searched.bounds())]
    ladder = further_starts(problem, begun, objective, bounds, is_timed=contest is not None)
    starts = list(dict.fromkeys([begun.choice, *foresight.starts, *ladder, *fitting]))
    knobs = _offer_knobs(evidence)
    variants = _equalised_starts(
        evidence, [begun.choice, *fitting], objective, budget, is_timed=contest is not None
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
        storage_path=journal,
        kept=kept,
        knobs=knobs,
        variants=variants,
        score=score_for(objective, DIVERGENCE_LIMIT, begun.evaluation.latency_s),
        problem_under=lambda knobs: evidence.under(knobs).problem,
        suggest=foresight.suggest,
        on_trial=lambda trial: say("search", trial.number + 1, count),
        on_end=ended.append,
    )
    defaults = {name: values[0] for name, values in knobs.items()}
    baselines = _measure_uniform(evidence, uniform, defaults, found, metric, bounds, say)
    race, timed, inside, judged = None, dict[int, float](), found, budget
    if contest is not None:
        predicted = [trial for trial in found if within(trial.evaluation, bounds)]
        by_divergence = objective == "auto" and metric is None
        race = hold_race(
            evidence,
            contest,
            found,
            select(predicted, objective, DIVERGENCE_LIMIT).trial,
            {scheme: choice for scheme, (choice, _) in uniform.items()},
            objective=objective,
            budget=budget,
            most_divergence=DIVERGENCE_LIMIT if by_divergence else float("inf"),
        )
        judged = race.judged(budget)
        timed, inside = race.by_trial(found, judged), race.inside(found, judged)
    expected = None if evidence.simulator.loss is not None else foresight.predict(found)
    whole = {choice for choice, _ in uniform.values()}
    ceiling = min((_loss(t) for t in inside if t.choice in whole and is_measured(t)), default=inf)
    selection = select(inside, objective, DIVERGENCE_LIMIT, timed, expected, ceiling)
    winner, value, outcome = _by_metric(
        evidence, selection, inside, metric, objective, budget, timed
    )
    if race is not None:
        outcome += race.remark(winner, judged)
    # Where plans are timed, the clock keeps the latency limit, and the race says so.
    modelled_limits = {n: b for n, b in bounds.items() if race is None or n != "latency_s"}
    outcome += say_limits(winner.evaluation, modelled_limits)
    for reason in ended:
        outcome += f"; the search ended after {len(found)} of {count} trials: {reason}"
    return Chosen(
        winner=winner,
        metric=value,
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
    objective: str,
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
        begun = start(problem, budget, objective)
        further = further_starts(problem, begun, objective, bounds, is_timed=is_timed)
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
    metric: Metric | None,
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
        value = _metric_of(evidence, metric, choice, knobs)
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


def _by_metric(
    evidence: Evidence,
    selection: Selection,
    trials: Sequence[Trial],
    metric: Metric | None,
    objective: str,
    budget: Budget,
    timed: Mapping[int, float],
) -> tuple[Trial, float | None, str]:
    """The winner when the user's metric has a say: its value, and the outcome in a sentence."""
    favourite = selection.trial
    if metric is None:
        return favourite, None, selection.outcome
    before = metric_values(metric, evidence.prepared.setting.graph.module)
    original = float(before.mean())
    drop = budget.accuracy_drop if budget.accuracy_drop is not None else DROP_LIMIT
    floor = original - drop * abs(original)
    is_limit = objective == "auto" or budget.accuracy_drop is not None
    entrants = [trial for trial in trials if trial.number in timed] or trials
    finalists = _finalists(favourite, entrants, objective) if is_limit else [favourite]
    after = {
        t.number: metric_values(metric, evidence.simulator.quantized(t.choice, t.knobs).module)
        for t in finalists
    }
    values = {number: float(each.mean()) for number, each in after.items()}
    passing = [trial for trial in finalists if values[trial.number] >= floor]
    accepted = f"a drop of {drop:.2%} from the float model's metric {original:.6g}"
    if not is_limit:
        value = values[favourite.number]
        verdict = "within" if passing else "outside"
        said = f"{selection.outcome}; metric {value:.6g}, {verdict} {accepted}"
        return favourite, value, said + say_drop(before, after[favourite.number])
    if passing:
        winner = select(passing, objective, float("inf"), timed).trial
        case = f"{_BEST[objective]} of {len(finalists)} finalists within {accepted}"
    else:
        winner = max(finalists, key=lambda t: (values[t.number], -_loss(t), -t.number))
        case = f"none of {len(finalists)} finalists is within {accepted}; the best metric instead"
    value = values[winner.number]
    said = f"{case}: metric {value:.6g}, divergence {_loss(winner):.4g}"
    return winner, value, said + say_drop(before, after[winner.number])


def _finalists(favourite: Trial, trials: Sequence[Trial], objective: str) -> list[Trial]:
    """The favourite and an even pick of the measured front, what the objective wants first."""

    def wanted(trial: Trial) -> tuple[float, float]:
        cost = trial.evaluation
        first = {"memory": cost.memory_bytes, "accuracy": _loss(trial)}
        return first.get(objective, cost.latency_s), _loss(trial)

    front = sorted(pareto_front(trials), key=wanted)
    step = max(-(-len(front) // FINALISTS), 1)
    picked = {trial.number: trial for trial in (favourite, *front[::step], *front[-1:])}
    return list(picked.values())


def _loss(trial: Trial) -> float:
    return float("inf") if trial.divergence is None else trial.divergence


def _metric_of(
    evidence: Evidence, metric: Metric | None, choice: Choice, knobs: Knobs
) -> float | None:
    if metric is None:
        return None
    return evaluate_metric(metric, evidence.simulator.quantized(choice, knobs).module)
