"""The last word on speed: the best plans and the uniform ones, timed whole against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from advisor.budget import Budget
from advisor.evidence import Evidence
from advisor.measure.finalists import Contest, TimedPlans
from advisor.planfile import Measurement
from advisor.search.objective import is_measured
from advisor.search.problem import Choice, evaluate
from advisor.search.study import Trial

RACED: Final = ("auto", "latency")
"""Objectives under which plans are timed before one is picked."""

ENTRANTS: Final = 8
"""Plans timed beside the uniform ones; their number is what a race takes its time for."""

NEAR: Final = 1.3
"""Plans predicted slower than the fastest by more than this are not worth timing."""

ALWAYS: Final = ("fp32", "w8a8", "w8a8-dynamic")
"""Uniform plans that are always timed: nothing slower than the best of these is returned."""

HOW: Final = "whole models timed in turns, low quantile"


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """Seconds of whole plans. uniform: the uniform plan of each scheme that was timed."""

    choices: tuple[Choice, ...]
    timed: TimedPlans
    uniform: Mapping[str, Choice]

    def by_trial(self, trials: Sequence[Trial], bounds: Mapping[str, float]) -> dict[int, float]:
        """Seconds by trial number; those over the latency limit only when all of them are."""
        known = dict(zip(self.choices, self.timed.seconds, strict=True))
        found = {t.number: known[t.choice] for t in trials if t.choice in known and is_measured(t)}
        limit = bounds.get("latency_s", float("inf"))
        return {number: s for number, s in found.items() if s <= limit} or found

    def remark(self, winner: Choice, budget: Budget) -> str:
        """What the outcome should add: a uniform plan won, or the latency limit is not kept."""
        added = ""
        for scheme, choice in self.uniform.items():
            if choice == winner:
                added = f"; timed on this machine, no mixed plan beats {scheme} wherever it can be"
        seconds = dict(zip(self.choices, self.timed.seconds, strict=True))
        if budget.latency_s is not None and seconds.get(winner, 0.0) > budget.latency_s:
            added += "; timed on this machine it is over the latency limit, as all plans timed are"
        return added

    def records(self, winner: Choice) -> tuple[Measurement, ...]:
        """The latencies of the winner and of every uniform plan, as they are saved."""
        subjects = {"plan": winner, **self.uniform}
        seconds = dict(zip(self.choices, self.timed.seconds, strict=True))
        machine = self.timed.machine
        return tuple(
            Measurement(
                quantity="latency_s",
                value=seconds[choice],
                when=self.timed.when,
                machine=f"{machine['cpu']}, {machine['runtime']}",
                how=HOW,
                subject=subject,
            )
            for subject, choice in subjects.items()
            if choice in seconds
        )


def hold_race(
    evidence: Evidence,
    contest: Contest,
    trials: Sequence[Trial],
    favourite: Trial,
    uniform: Mapping[str, Choice],
    most_divergence: float,
) -> Race:
    """Time the favourite, other promising trials and the uniform plans.

    uniform: choice by scheme. most_divergence: of a trial that could win.

    Raises:
        OutputError: the cache cannot be written.
        MissingDependencyError: the runtime is not installed.
    """
    seconds = {choice: evaluate(evidence.problem, choice).latency_s for choice in uniform.values()}
    near = NEAR * min(*seconds.values(), favourite.evaluation.latency_s)
    baselines = {
        scheme: choice
        for scheme, choice in uniform.items()
        if scheme in ALWAYS or seconds[choice] <= near
    }
    wanted = dict.fromkeys([uniform["fp32"], *baselines.values()])
    entrants = dict.fromkeys([favourite.choice])
    for trial in sorted(filter(is_measured, trials), key=_promise):
        is_near = _seconds(trial) <= NEAR * _seconds(favourite)
        if len(entrants) < ENTRANTS and is_near and (trial.divergence or 0.0) <= most_divergence:
            entrants[trial.choice] = None
    choices = tuple(dict.fromkeys([*wanted, *entrants]))
    simulator = evidence.simulator
    knobs = {trial.choice: trial.knobs for trial in reversed(trials)}
    plans = {
        choice: partial(simulator.quantized, choice, knobs.get(choice, favourite.knobs))
        for choice in choices
    }
    timed = contest.hold(evidence.prepared.setting, plans)
    return Race(choices=choices, timed=timed, uniform=baselines)


def _seconds(trial: Trial) -> float:
    return trial.evaluation.latency_s


def _promise(trial: Trial) -> tuple[float, float, int]:
    return _seconds(trial), trial.divergence or 0.0, trial.number
