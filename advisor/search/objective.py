"""Which plan is best: the starting plan from predictions, the final one from measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Final

from advisor.budget import Budget, format_amount
from advisor.errors import AdvisorError, UsageError
from advisor.search.belief import TRUST
from advisor.search.feasibility import check_feasible
from advisor.search.milp import Solution, solve, value_of
from advisor.search.problem import Choice, Evaluation, Problem
from advisor.search.trial import Trial

OBJECTIVES: Final = ("auto", "accuracy", "latency", "memory")
DIVERGENCE_LIMIT: Final = 0.01
"""Default loss that "auto" accepts: nats per prediction, or squared error over the power."""

LATENCY_SLACK: Final = 0.02
"""Share by which "auto" and "latency" may be slower than the fastest plan when that loses less
accuracy: no latency is known better than this, so a smaller difference is no reason."""

NEAR: Final = 1.5
"""Measured divergences within this factor may be in another order on other samples."""

BINDING: Final = 0.98
"""Share of a limit from which on it is said to bind: hardly anything better fits into the rest."""

_TINY: Final = 1e-12
_MOST: Final = {"latency_s": "fastest", "memory_bytes": "smallest"}
_FIRST: Final[dict[str, str]] = {
    "accuracy": "divergence",
    "latency": "latency_s",
    "memory": "memory_bytes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What the search goes for: an objective, and what "auto" means by it.

    first: the quantity that "auto" makes least, of "latency_s" and "memory_bytes". predicted,
    measured: the most divergence that "auto" accepts, before and after it is measured; they differ
    where what is measured is a loss of the user's.
    """

    objective: str
    first: str = "latency_s"
    predicted: float = DIVERGENCE_LIMIT
    measured: float = DIVERGENCE_LIMIT


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The starting plan. model_gap: relative distance to its proven bound, by prediction."""

    choice: Choice
    evaluation: Evaluation
    outcome: str
    model_gap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The final trial. measured_regret: its divergence less the best measured one's."""

    trial: Trial
    outcome: str
    measured_regret: float


def start(
    problem: Problem,
    budget: Budget,
    objective: str = "auto",
    divergence_limit: float = DIVERGENCE_LIMIT,
    first: str = "latency_s",
) -> Start:
    """The plan to search from: the exact optimum of the predictions inside every limit.

    "auto": the least ``first`` of those with predicted divergence of at most ``divergence_limit``
    (of latencies, within ``LATENCY_SLACK`` the one of least divergence); when none is that
    accurate, the least divergence. "accuracy", "latency", "memory": the least of
    that quantity, then the least divergence.

    Raises:
        UsageError: unknown objective, or a divergence limit that is not a number above 0.
        InfeasibleError: nothing fits the budget.
    """
    check_objective(objective, divergence_limit)
    bounds = budget.bounds()
    if objective == "auto":
        accurate = {**bounds, "divergence": divergence_limit}
        fastest = solve(problem, minimise=first, bounds=accurate)
        case = f"{_MOST[first]} plan with predicted divergence within {divergence_limit:g}"
        if fastest is not None and first != "latency_s":
            return _start(fastest, case, budget)
        if fastest is not None:
            near = {**bounds, "latency_s": fastest.value * (1 + LATENCY_SLACK)}
            near["latency_s"] = min(near["latency_s"], bounds.get("latency_s", math.inf))
            best = solve(problem, minimise="divergence", bounds=near) or fastest
            begun = _start(best, case, budget)
            return replace(begun, model_gap=max(fastest.gap, best.gap))
    found = solve(problem, minimise=_FIRST.get(objective, "divergence"), bounds=bounds)
    if found is None:
        check_feasible(problem, budget)
        raise AdvisorError(f"the solver contradicts itself about the budget {budget.describe()}")
    cases = {
        "auto": f"no plan is predicted within divergence {divergence_limit:g}; the least "
        f"predicted divergence instead",
        "accuracy": "least predicted divergence",
        "latency": "least latency",
        "memory": "least memory",
    }
    return _start(found, cases[objective], budget)


def select(
    trials: Sequence[Trial],
    objective: str = "auto",
    divergence_limit: float = DIVERGENCE_LIMIT,
    timed: Mapping[int, float] | None = None,
    predicted: Mapping[int, float] | None = None,
    ceiling: float = math.inf,
    first: str = "latency_s",
) -> Selection:
    """The best measured trial inside every limit, by the rule of ``start`` on measurements.

    "auto" and "latency" take the least loss within ``LATENCY_SLACK`` of the fastest; ``first``
    "memory_bytes" makes "auto" take the least memory.

    timed: seconds by trial number where whole models were timed; only those trials can win, and
    how fast they are goes by it.
    predicted: divergence by trial number, interactions included. Trials within ``NEAR`` of the
    least divergence differ by little more than the choice of samples, so of these a geometric mean
    decides, which says more about unseen data than either: ``TRUST`` for what was measured, the
    rest for what is predicted. ceiling: a measured divergence above which this is not done, such
    as that of the best uniform precision.

    Ties go to less divergence, then less latency, less size, and the first choice in order; of
    several trials of one choice and one set of knobs the earliest counts.

    Raises:
        UsageError: unknown objective, a bad divergence limit, or no trial was measured inside
            the budget.
    """
    check_objective(objective, divergence_limit)
    usable = [trial for trial in trials if is_measured(trial)]
    if not usable:
        raise UsageError(
            f"none of {len(trials)} trials was measured inside the budget with a finite result; "
            f"run more trials, or pass a start inside the budget"
        )
    least = min(_divergence(trial) for trial in usable)
    timed = timed or {}
    usable = [trial for trial in usable if trial.number in timed] or usable
    accurate = [trial for trial in usable if _divergence(trial) <= divergence_limit]
    limit = f"{divergence_limit:g}"
    fastest = "fastest timed plan" if timed else "fastest plan"
    if objective == "auto" and accurate and first == "memory_bytes":
        best = _smallest(accurate)
        case = f"smallest plan with measured divergence within {limit}"
    elif objective == "auto" and accurate:
        best = fastest_of(accurate, timed, predicted, ceiling)
        case = f"{fastest} with measured divergence within {limit}"
    elif objective == "latency":
        best = fastest_of(usable, timed, predicted, ceiling)
        case = f"least loss within {LATENCY_SLACK:.0%} of the {fastest}"
    elif objective == "memory":
        best = _smallest(usable)
        case = "least memory"
    else:
        best = _least_lossy(usable, predicted, ceiling)
        case = "least measured divergence"
        if predicted is not None:
            case = "least divergence, measured and predicted"
        if objective == "auto":
            case = f"no plan measured within divergence {limit}; the least divergence instead"
    outcome = f"{case}: divergence {_divergence(best):.4g}, {_costs(best.evaluation)}"
    regret = _divergence(best) - least
    return Selection(trial=best, outcome=outcome, measured_regret=regret)


def fastest_of(
    trials: Sequence[Trial],
    timed: Mapping[int, float] | None = None,
    predicted: Mapping[int, float] | None = None,
    ceiling: float = math.inf,
) -> Trial:
    """The least loss among the trials within ``LATENCY_SLACK`` of the fastest.

    timed: seconds by trial number, in place of the predicted ones. predicted, ceiling: as in
    ``select``.
    """
    seconds = {t.number: (timed or {}).get(t.number, t.evaluation.latency_s) for t in trials}
    limit = min(seconds.values()) * (1 + LATENCY_SLACK)
    near = [trial for trial in trials if seconds[trial.number] <= limit]
    return _least_lossy(near, predicted, ceiling)


def pareto_front(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Measured trials that no other beats in divergence, memory, latency and size together.

    In the order given; of trials with identical numbers the first is kept.
    """
    usable = [(trial, _coordinates(trial)) for trial in trials if is_measured(trial)]
    front: list[Trial] = []
    seen: set[tuple[float, ...]] = set()
    for trial, point in usable:
        beaten = any(
            other != point and all(a <= b for a, b in zip(other, point, strict=True))
            for _, other in usable
        )
        if not beaten and point not in seen:
            seen.add(point)
            front.append(trial)
    return tuple(front)


def score_for(
    objective: str, divergence_limit: float, begun: Evaluation, first: str = "latency_s"
) -> Callable[[float, Evaluation], float]:
    """What the study minimises: a number that orders measured trials as ``select`` does.

    begun: of the starting plan. For "auto": below 1 for accurate trials, by ``first``; above 1 for
    the others, by divergence. For "latency": below 1 for trials within ``LATENCY_SLACK`` of the
    starting plan, by divergence; above 1 for the others, by latency.

    Raises:
        UsageError: unknown objective, or a bad divergence limit.
    """
    check_objective(objective, divergence_limit)
    latency_scale_s, scale = begun.latency_s, value_of(begun, first)

    def score(divergence: float, evaluation: Evaluation) -> float:
        if objective == "latency":
            if evaluation.latency_s <= latency_scale_s * (1 + LATENCY_SLACK):
                return divergence / (divergence + divergence_limit)
            return evaluation.latency_s / latency_scale_s
        if objective == "memory":
            return evaluation.memory_bytes
        if objective == "accuracy":
            return divergence
        if divergence > divergence_limit:
            return divergence / divergence_limit
        value = value_of(evaluation, first)
        return value / (value + scale)

    return score


def shares_used(
    evaluation: Evaluation, bounds: Mapping[str, float], timed_s: float | None = None
) -> dict[str, float]:
    """Share of every limit that a plan uses, by quantity. timed_s: its seconds by a clock."""
    values = {name: value_of(evaluation, name) for name in bounds}
    if timed_s is not None and "latency_s" in values:
        values["latency_s"] = timed_s
    return {name: values[name] / bound for name, bound in bounds.items() if bound > 0}


def say_limits(used: Mapping[str, float]) -> str:
    """How much of every limit a plan uses; which of them bind. Empty without limits."""
    words = [
        f"{name.rpartition('_')[0]} {share:.1%} used{' and binding' if share >= BINDING else ''}"
        for name, share in used.items()
    ]
    return f"; of the budget: {', '.join(words)}" if words else ""


def check_objective(objective: str, divergence_limit: float = DIVERGENCE_LIMIT) -> None:
    """Raise UsageError unless both can be used."""
    if objective not in OBJECTIVES:
        near = get_close_matches(str(objective).lower(), OBJECTIVES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise UsageError(f"unknown objective {objective!r}{hint} known: {', '.join(OBJECTIVES)}")
    if math.isnan(divergence_limit) or divergence_limit <= 0:
        raise UsageError(
            f"the divergence limit {divergence_limit!r} is not a number above 0; "
            f"{DIVERGENCE_LIMIT:g} is the default"
        )


def is_measured(trial: Trial) -> bool:
    """Inside every limit, and measured with a finite result."""
    return trial.feasible and trial.divergence is not None and math.isfinite(trial.divergence)


def _start(found: Solution, case: str, budget: Budget) -> Start:
    evaluation = found.evaluation
    return Start(
        choice=found.choice,
        evaluation=evaluation,
        outcome=f"{case}: predicted divergence {evaluation.divergence:.4g}, {_costs(evaluation)}; "
        f"budget {budget.describe()}",
        model_gap=found.gap,
    )


def _costs(evaluation: Evaluation) -> str:
    return ", ".join(
        f"{name} {format_amount(field, value)}"
        for name, field, value in (
            ("latency", "latency_s", evaluation.latency_s),
            ("memory", "memory_bytes", evaluation.memory_bytes),
            ("size", "size_bytes", evaluation.size_bytes),
        )
    )


def _least_lossy(
    trials: Sequence[Trial], predicted: Mapping[int, float] | None, ceiling: float
) -> Trial:
    best = min(trials, key=_ties)
    limit = min(NEAR * _divergence(best), ceiling)
    near = [t for t in trials if _divergence(t) <= limit and t.number in (predicted or {})]
    if predicted is None or best not in near:
        return best

    def merit(trial: Trial) -> float:
        seen, foreseen = max(_divergence(trial), _TINY), max(predicted[trial.number], _TINY)
        return float(seen**TRUST * foreseen ** (1 - TRUST))

    return min(near, key=lambda trial: (merit(trial), *_ties(trial)))


def _smallest(trials: Sequence[Trial]) -> Trial:
    return min(trials, key=lambda trial: (trial.evaluation.memory_bytes, *_ties(trial)))


def _divergence(trial: Trial) -> float:
    return math.inf if trial.divergence is None else trial.divergence


def _ties(trial: Trial) -> tuple[float, float, float, Choice, int]:
    cost = trial.evaluation
    return (_divergence(trial), cost.latency_s, cost.size_bytes, trial.choice, trial.number)


def _coordinates(trial: Trial) -> tuple[float, ...]:
    cost = trial.evaluation
    return (_divergence(trial), cost.memory_bytes, cost.latency_s, cost.size_bytes)
