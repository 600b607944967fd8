"""What is known of plans before the study: corrected predictions, interactions, good starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from advisor.assemble import error_columns
from advisor.budget import Budget
from advisor.evidence import PROBE_KNOBS, Evidence, Progress
from advisor.indicators import Indicators
from advisor.search.belief import believe
from advisor.search.descent import Descent
from advisor.search.measurements import Job, Measurements, Outcome, plan_name
from advisor.search.model import columns_of
from advisor.search.objective import (
    Aim,
    Start,
    is_measured,
    score_for,
    shares_used,
    start,
)
from advisor.search.problem import Choice, FloatArray, Knobs, Problem
from advisor.search.products import MOST_PRODUCTS, count_products, with_products
from advisor.search.recheck import Checked, recheck
from advisor.search.surrogate import HALF, fit_surrogate
from advisor.search.table import as_array, table_of
from advisor.search.trial import Score, Trial
from advisor.setting import Setting

if TYPE_CHECKING:
    from advisor.passes.sensitivity import Column, Sensitivity

SHARES: Final = (HALF, 0.25, 1.0)
"""Shares of the interactions under which a start is looked for; the first is believed most."""


CENTRES: Final = 3
"""Best trials around which a suggestion is looked for."""

NEIGHBOURS: Final = 256
"""Of each of them, the best predicted."""

ENOUGH_USED: Final = 0.99
"""Share of a limit from which on a plan leaves nothing to speak of."""

LARGE: Final = 120
"""Groups from which on local search takes too long to be run more than once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Foresight:
    """problem: with divergences corrected by ``recheck``. scores: of its columns, likewise. begun:
    the exact start. starts: optima with interactions, local ones where the problem is large.
    checked: choices that were measured alone. learns: whether what is measured is the divergence
    that is predicted. equalised: problem and scores of the model equalised, where there is one.
    """

    problem: Problem
    scores: FloatArray
    begun: Start
    starts: tuple[Choice, ...]
    checked: Mapping[tuple[int, int], float]
    budget: Budget
    aim: Aim
    learns: bool = True
    equalised: tuple[Problem | None, FloatArray | None] = (None, None)

    @property
    def score(self) -> Score:
        """What the study minimises, of what is measured."""
        aim = self.aim
        return score_for(aim.objective, aim.measured, self.begun.evaluation, aim.first)

    def predict(self, trials: Sequence[Trial]) -> dict[int, float]:
        """Divergence of the trials by number, interactions included."""
        found: dict[int, float] = {}
        for problem, scores, own in (
            (self.problem, self.scores, [t for t in trials if not t.knobs.get("equalise", False)]),
            (*self.equalised, [t for t in trials if t.knobs.get("equalise", False)]),
        ):
            if own and problem is not None and scores is not None:
                features = table_of(problem).features(as_array([trial.choice for trial in own]))
                lost = fit_surrogate(scores).divergence(features)
                found |= {t.number: float(value) for t, value in zip(own, lost, strict=True)}
        return found

    def suggest(self, trials: Sequence[Trial]) -> tuple[Choice, Knobs] | None:
        """The plan near the best trials from which most is expected, given all that was measured.

        It has the knobs of the best trial, and was not tried with them. Where a user's loss is
        measured, which is not what is predicted: the best predicted one. None: nothing was
        measured, or nothing better is expected.
        """
        score = self.score
        usable = [trial for trial in trials if is_measured(trial)]
        if not usable:
            return None
        ranked = sorted(usable, key=lambda t: (score(t.divergence or 0.0, t.evaluation), t.number))
        knobs = dict(ranked[0].knobs)
        alike = [trial for trial in ranked if dict(trial.knobs) == knobs]
        tried = {trial.choice for trial in trials if dict(trial.knobs) == knobs}
        descent = self._descent(knobs)
        near = dict.fromkeys(
            found.choice
            for trial in (alike[:1] if len(self.problem.groups) > LARGE else alike[:CENTRES])
            for found in descent.neighbours(trial.choice)[:NEIGHBOURS]
        )
        plans = [choice for choice in near if choice not in tried]
        if not plans:
            return None
        # What is measured lower with fewer bytes is often luck: plans that use more come first.
        best_trial = alike[0]
        wider: list[Choice] = []
        if self._leaves_much(best_trial):
            wider = [choice for choice in plans if self._is_wider(choice, best_trial.choice)]
        if wider or not self.learns:
            return (wider or plans)[0], knobs
        table = descent.table
        belief = believe(
            descent.surrogate,
            table.features(as_array([trial.choice for trial in alike])),
            np.array([trial.divergence for trial in alike], dtype=np.float64),
        )
        features = table.features(as_array(plans))
        seen, _ = belief.of(table.features(as_array([alike[0].choice])))
        best = score(float(np.exp(seen[0])), alike[0].evaluation)
        gains = belief.expected_gain(features, table.evaluate(features), score, best)
        at = int(np.argmax(gains))
        return (plans[at], knobs) if gains[at] > 0 else None

    def _leaves_much(self, trial: Trial) -> bool:
        """Whether a plan that is to lose little leaves much of every limit unused."""
        used = shares_used(trial.evaluation, self.budget.bounds())
        is_wanted = self.aim.objective == "accuracy" and bool(used)
        return is_wanted and max(used.values()) < ENOUGH_USED

    def _is_wider(self, choice: Choice, origin: Choice) -> bool:
        """Whether a plan differs in one group, which takes more bytes."""
        changed = [g for g, (a, b) in enumerate(zip(choice, origin, strict=True)) if a != b]
        if len(changed) != 1:
            return False
        group = changed[0]
        sizes = self.problem.size_bytes.per_group[group]
        return bool(sizes[choice[group]] > sizes[origin[group]])

    def _descent(self, knobs: Knobs) -> Descent:
        problem, scores = self.problem, self.scores
        equalised, its_scores = self.equalised
        if knobs.get("equalise", False) and equalised is not None and its_scores is not None:
            problem, scores = equalised, its_scores
        return _descent(problem, scores, self.budget, self.aim, self.begun, HALF)


def foresee(
    evidence: Evidence,
    budget: Budget,
    aim: Aim,
    most: int,
    kept: Measurements,
    say: Progress,
) -> Foresight:
    """Correct the predictions around the plans they lead to, and find where to start.

    most: choices that may be measured alone, on the scoring half. kept: those measurements.

    Raises:
        InfeasibleError: nothing fits the budget.
    """
    setting, problem = evidence.prepared.setting, evidence.problem
    scores = column_scores(setting, problem, evidence.sensitivity)
    done = 0

    def job(choice: Choice) -> Job:
        return lambda: Outcome(value=evidence.simulator.measure_scoring(choice, PROBE_KNOBS))

    def measure(choices: Sequence[Choice]) -> list[float]:
        nonlocal done
        jobs = {
            plan_name(problem, choice, PROBE_KNOBS, "scoring"): job(choice) for choice in choices
        }
        found: list[float] = []
        for name in jobs:
            say("check", min(done, most), most)
            done += 1
            found.append(kept.get(name, jobs).value)
        return found

    is_large = len(problem.groups) > LARGE

    def plans(problem: Problem, scores: FloatArray) -> list[Choice]:
        begun = begin(problem, budget, aim)
        if is_large:
            return [begun.choice]
        return [begun.choice, _improve(problem, scores, budget, aim, begun, HALF)]

    checked: Checked = recheck(problem, scores, plans, measure, most=most)
    begun = begin(checked.problem, budget, aim)
    starts = [
        _improve(checked.problem, checked.scores, budget, aim, begun, share)
        for share in (SHARES[:1] if is_large else SHARES)
    ]
    say("check", most, most)
    other = evidence.equalised
    return Foresight(
        problem=checked.problem,
        scores=checked.scores,
        begun=begun,
        starts=tuple(choice for choice in dict.fromkeys(starts) if choice != begun.choice),
        checked=checked.factors,
        budget=budget,
        aim=aim,
        learns=evidence.simulator.loss is None,
        equalised=(None, None)
        if other is None
        else (other.problem, column_scores(setting, other.problem, other.sensitivity)),
    )


def begin(problem: Problem, budget: Budget, aim: Aim) -> Start:
    """The exact start for an aim.

    Raises:
        InfeasibleError: nothing fits the budget.
    """
    return start(problem, budget, aim.objective, aim.predicted, aim.first)


def column_scores(setting: Setting, problem: Problem, sensitivity: Sensitivity) -> FloatArray:
    """Scores of every candidate and indicator; shape (candidates + indicators, samples x probes).

    Zero for what loses nothing, or for what no score is known.
    """
    columns = columns_of(problem)
    count = sensitivity.samples * sensitivity.probes
    found = np.zeros((columns.total, count))

    def add(row: int, names: Sequence[Column]) -> None:
        for name in names:
            if name in sensitivity.scores:
                found[row] += sensitivity.scores[name].double().numpy()

    for group, at in zip(setting.groups, columns.starts[:-1], strict=True):
        for index, option in enumerate(setting.space.candidates[group.name]):
            for layer in setting.layers_of(group):
                add(int(at) + index, error_columns(layer, option, setting.capability))
    indicators = Indicators(setting)
    for tensor, index in indicators.produced.items():
        add(columns.candidates + index, [("tensor", tensor, "")])
    for (tensor, reader), index in indicators.edges.items():
        add(columns.candidates + index, [("edge", tensor, reader)])
    return found


def _improve(
    problem: Problem,
    scores: FloatArray,
    budget: Budget,
    aim: Aim,
    begun: Start,
    share: float,
) -> Choice:
    """The best plan with that share of the interactions: proven where the problem is small, else
    the local optimum near the exact start."""
    surrogate = fit_surrogate(scores, kept=share)
    if count_products(problem, surrogate) <= MOST_PRODUCTS:
        return begin(with_products(problem, surrogate), budget, aim).choice
    descent = _descent(problem, scores, budget, aim, begun, share)
    return descent.run(begun.choice).choice


def _descent(
    problem: Problem,
    scores: FloatArray,
    budget: Budget,
    aim: Aim,
    begun: Start,
    share: float,
) -> Descent:
    return Descent(
        table=table_of(problem),
        surrogate=fit_surrogate(scores, kept=share),
        bounds=budget.bounds(),
        score=score_for(aim.objective, aim.predicted, begun.evaluation, aim.first),
    )
