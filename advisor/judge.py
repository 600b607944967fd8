"""The user's metric decides: how far the search may go, and which of its plans is picked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Final

from advisor.budget import Budget
from advisor.evidence import Evidence, Progress
from advisor.metric import FloatArray, Metric, drop_interval, metric_values, say_drop, share_lost
from advisor.plan import Drop
from advisor.search.boundary import TESTS, Boundary, find_boundary
from advisor.search.measurements import Measurements, Outcome, plan_name
from advisor.search.objective import Aim, Selection, is_measured, select
from advisor.search.problem import Choice, Knobs
from advisor.search.trial import Trial
from advisor.simulate import Simulator

DROP_LIMIT: Final = 0.01
"""Share of the metric that objective "auto" accepts to lose when no accuracy_drop is given."""

FINALISTS: Final = 8
"""Trials on which the metric is run after the search; it may be expensive."""

_LEAST: Final = 1e-9
"""Divergence that stands for none: a limit has to be above 0."""

_BEST: Final = {
    "auto": "fastest",
    "accuracy": "least divergence",
    "latency": "least latency",
    "memory": "least memory",
}
_FIRST: Final = {"auto": "latency_s", "latency": "latency_s", "memory": "memory_bytes"}

_Key = tuple[Choice, tuple[tuple[str, object], ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """The metric on the simulations of plans, run once for each.

    before: its values on the float model. drop: share of its mean that may be lost. is_limit: only
    plans inside that may win.
    """

    metric: Metric
    simulator: Simulator
    before: FloatArray
    drop: float
    is_limit: bool
    known: dict[_Key, FloatArray] = field(default_factory=dict[_Key, FloatArray])

    @property
    def floor(self) -> float:
        """The least value of the metric that passes."""
        original = float(self.before.mean())
        return original - self.drop * abs(original)

    def values(self, choice: Choice, knobs: Knobs) -> FloatArray:
        """The metric's values on a plan.

        Raises:
            UsageError: they are not finite numbers.
        """
        key = _key(choice, knobs)
        if key not in self.known:
            module = self.simulator.quantized(choice, knobs).module
            self.known[key] = metric_values(self.metric, module)
        return self.known[key]

    def value(self, choice: Choice, knobs: Knobs) -> float:
        """Their mean."""
        return float(self.values(choice, knobs).mean())

    def passes(self, choice: Choice, knobs: Knobs) -> bool:
        """Whether the mean is within the drop: by what was seen, not by its interval."""
        return self.value(choice, knobs) >= self.floor

    def is_known(self, trial: Trial) -> bool:
        """Whether the metric was run on the trial."""
        return _key(trial.choice, trial.knobs) in self.known

    def has_failed(self, trial: Trial) -> bool:
        """Whether the metric was run on the trial, and does not allow it."""
        return self.is_known(trial) and not self.passes(trial.choice, trial.knobs)

    def lost(self, trial: Trial) -> Drop:
        """What a trial loses of the metric, with its interval."""
        after = self.values(trial.choice, trial.knobs)
        interval = drop_interval(self.before, after)
        return Drop(
            value=share_lost(float(self.before.mean()), float(after.mean())),
            low=None if interval is None else interval[0],
            high=None if interval is None else interval[1],
            examples=0 if interval is None else int(after.size),
            limit=self.drop if self.is_limit else None,
        )


def make_judge(evidence: Evidence, metric: Metric, objective: str, budget: Budget) -> Judge:
    """Run the metric on the float model.

    Raises:
        UsageError: the metric's values are not finite numbers.
    """
    return Judge(
        metric=metric,
        simulator=evidence.simulator,
        before=metric_values(metric, evidence.prepared.setting.graph.module),
        drop=DROP_LIMIT if budget.accuracy_drop is None else budget.accuracy_drop,
        is_limit=objective == "auto" or budget.accuracy_drop is not None,
    )


def aim_by_metric(
    evidence: Evidence,
    judge: Judge,
    budget: Budget,
    objective: str,
    knobs: Knobs,
    kept: Measurements,
    say: Progress,
) -> tuple[Aim, Boundary | None]:
    """How much divergence the metric allows, found along the front of predictions.

    The search is then for the fastest (or smallest) plan within what the best plan that passes
    loses. Nothing is tested where the metric is no limit, or the least loss is wanted anyway.

    Raises:
        InfeasibleError: nothing fits the budget.
    """
    first = _FIRST.get(objective)
    if not judge.is_limit or first is None:
        return Aim(objective=objective), None
    tests = 0

    def passes(choice: Choice) -> bool:
        nonlocal tests
        say("metric", tests, TESTS)
        tests += 1
        return judge.passes(choice, knobs)

    found = find_boundary(evidence.problem, budget, first, passes)
    say("metric", TESTS, TESTS)
    if found.best is None or found.passed is None:
        return Aim(objective=objective), found
    best = found.best

    def measure() -> Outcome:
        lost = judge.simulator.measure_all(best, knobs, lambda _: None)
        return Outcome(value=lost.divergence, held_out=lost.held_out)

    name = plan_name(evidence.problem, best, knobs, "all")
    seen = kept.get(name, {name: measure}).value
    measured = max(seen, _LEAST) if isfinite(seen) else inf
    # A loss of the user's has another scale than what is predicted.
    is_alike = judge.simulator.loss is None and isfinite(seen)
    predicted = measured if is_alike else max(found.passed, _LEAST)
    return Aim(objective="auto", first=first, predicted=predicted, measured=measured), found


def pick_by_metric(
    judge: Judge,
    selection: Selection,
    trials: Sequence[Trial],
    objective: str,
    timed: Mapping[int, float],
    boundary: Boundary | None,
) -> tuple[Trial, str]:
    """The winner when the user's metric has a say, and the outcome in a sentence.

    The metric is run on trials that would win if they passed, the least divergence first.
    """
    favourite = selection.trial
    accepted = f"a drop of {judge.drop:.2%} from the float model's metric {judge.before.mean():.6g}"
    if not judge.is_limit:
        value = judge.value(favourite.choice, favourite.knobs)
        verdict = "within" if value >= judge.floor else "outside"
        said = f"{selection.outcome}; metric {value:.6g}, {verdict} {accepted}"
        return favourite, said + _say_interval(judge, favourite)
    entrants = [t for t in trials if t.number in timed] or [t for t in trials if is_measured(t)]
    _judge_finalists(judge, favourite, entrants, objective, timed)
    finalists = [trial for trial in entrants if judge.is_known(trial)]
    passing = [trial for trial in finalists if not judge.has_failed(trial)]
    if passing:
        winner = _pick(passing, objective, timed)
        case = f"{_BEST[objective]} of {len(finalists)} finalists within {accepted}"
    else:

        def merit(trial: Trial) -> tuple[float, float, int]:
            return judge.value(trial.choice, trial.knobs), -_loss(trial), -trial.number

        winner = max(finalists, key=merit)
        case = f"none of {len(finalists)} finalists is within {accepted}; the best metric instead"
    value = judge.value(winner.choice, winner.knobs)
    said = f"{case}: metric {value:.6g}, divergence {_loss(winner):.4g}"
    return winner, said + _say_interval(judge, winner) + _say_boundary(boundary)


def _judge_finalists(
    judge: Judge,
    favourite: Trial,
    entrants: Sequence[Trial],
    objective: str,
    timed: Mapping[int, float],
) -> None:
    """Run the metric on the favourite, then on whatever would win if it passed."""
    following = favourite
    for _ in range(FINALISTS):
        judge.values(following.choice, following.knobs)
        open_ = [trial for trial in entrants if not judge.is_known(trial)]
        passing = [t for t in entrants if judge.is_known(t) and not judge.has_failed(t)]
        if passing:
            open_ = [
                trial for trial in open_ if _pick([*passing, trial], objective, timed) is trial
            ]
        if not open_:
            return
        following = min(open_, key=lambda trial: (_loss(trial), trial.number))


def _pick(passing: Sequence[Trial], objective: str, timed: Mapping[int, float]) -> Trial:
    return select(passing, objective, inf, timed).trial


def _say_interval(judge: Judge, trial: Trial) -> str:
    """The drop with its interval, and whether these examples can tell that it is allowed."""
    lost = judge.lost(trial)
    said = say_drop(judge.before, judge.values(trial.choice, trial.knobs))
    if lost.high is not None and lost.value <= judge.drop < lost.high:
        said += f", too few to tell that it is within {judge.drop:.2%}"
    return said


def _say_boundary(boundary: Boundary | None) -> str:
    """Between which predictions plans begin to fail."""
    if boundary is None or boundary.passed is None:
        return ""
    said = f"; on the exact front plans pass up to a predicted divergence of {boundary.passed:.3g}"
    return said + ("" if boundary.failed is None else f" and fail from {boundary.failed:.3g}")


def _loss(trial: Trial) -> float:
    return inf if trial.divergence is None else trial.divergence


def _key(choice: Choice, knobs: Knobs) -> _Key:
    return choice, tuple(sorted(knobs.items()))
