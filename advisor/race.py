"""The last word on speed: the best plans and the uniform ones, timed whole against each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from advisor.budget import Budget
from advisor.evidence import Evidence
from advisor.measure.finalists import Contest, Entrant, TimedPlans
from advisor.planfile import Measurement
from advisor.search.objective import is_measured
from advisor.search.problem import Choice, Knobs, evaluate
from advisor.search.trial import Trial

RACED: Final = ("auto", "latency")
"""Objectives under which plans are timed before one is picked; under a latency limit all are."""

REACH: Final = 0.15
"""Share by which a plan may be predicted over or under the latency limit and still be timed."""

ENTRANTS: Final = 10
"""Plans timed beside the uniform ones; their number is what a race takes its time for."""

NEAR: Final = 1.3
"""Plans predicted slower than the fastest by more than this are not worth timing."""

CLOSE: Final = 1.1
"""Plans predicted slower than the fastest by less than this may be the fastest."""

ALWAYS: Final = ("fp32", "w8a8", "w8a8-dynamic")
"""Uniform plans that are always timed: nothing slower than the best of these is returned."""

HOW: Final = "whole models timed in turns"

Plan = tuple[Choice, bool]
"""What decides a plan's speed: the choice, and whether the model is equalised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """Seconds of whole plans, the first of which is float32.

    uniform: the uniform plan of each scheme that was timed. reference_s: float32's seconds when
    the costs were measured. A machine that shares its processor runs at another speed by now, all
    models alike, and a latency limit is about the speed that was predicted with.
    """

    plans: tuple[Plan, ...]
    timed: TimedPlans
    uniform: Mapping[str, Plan]
    reference_s: float

    @property
    def seconds(self) -> dict[Plan, float]:
        """Seconds by plan, at the machine's speed when the costs were measured."""
        scale = self.reference_s / self.timed.seconds[0]
        return {p: s * scale for p, s in zip(self.plans, self.timed.seconds, strict=True)}

    def judged(self, budget: Budget) -> Budget:
        """The budget that the plans are held against: a multiple of a uniform plan's latency is
        one of what that plan took here, beside the others."""
        known = self.seconds
        return budget.resolved({scheme: known[plan] for scheme, plan in self.uniform.items()})

    def by_trial(self, trials: Sequence[Trial], budget: Budget) -> dict[int, float]:
        """Seconds by trial number, of those inside the latency limit; of the fastest if none is."""
        known = self.seconds
        found = {
            t.number: known[plan_of(t)] for t in filter(is_measured, trials) if plan_of(t) in known
        }
        limit = max(_limit(budget), min(found.values(), default=0.0))
        return {number: seconds for number, seconds in found.items() if seconds <= limit}

    def inside(self, trials: Sequence[Trial], budget: Budget) -> tuple[Trial, ...]:
        """Trials inside the latency limit, by their timing or else by prediction."""
        kept, limit = self.by_trial(trials, budget), _limit(budget)
        return tuple(
            trial
            for trial in trials
            if trial.number in kept
            or (plan_of(trial) not in self.plans and _seconds(trial) <= limit)
        )

    def remark(self, winner: Trial, budget: Budget) -> str:
        """What the outcome should add: a uniform plan won, or the latency limit is not kept."""
        added = ""
        plan = plan_of(winner)
        for scheme, uniform in self.uniform.items():
            if uniform == plan:
                added = f"; timed on this machine, no mixed plan beats {scheme} wherever it can be"
        if self.seconds.get(plan, 0.0) > _limit(budget):
            added += "; timed on this machine it is over the latency limit, as all plans timed are"
        return added

    def records(self, winner: Trial) -> tuple[Measurement, ...]:
        """Latency and partitions of the winner and of every uniform plan, as they are saved."""
        subjects = {"plan": plan_of(winner), **self.uniform}
        machine = self.timed.machine
        found: list[Measurement] = []
        for quantity, values, how in (
            ("latency_s", self.timed.seconds, HOW),
            ("partitions", self.timed.partitions, "counted in the open model"),
        ):
            known = dict(zip(self.plans, values, strict=False))  # not every runtime has partitions
            found += [
                Measurement(
                    quantity=quantity,
                    value=known[plan],
                    when=self.timed.when,
                    machine=f"{machine['cpu']}, {machine['runtime']}",
                    how=how,
                    subject=subject,
                )
                for subject, plan in subjects.items()
                if plan in known
            ]
        return tuple(found)


def is_raced(objective: str, budget: Budget) -> bool:
    """Whether the latency of whole plans decides which is picked."""
    return objective in RACED or budget.latency_s is not None


def widened(budget: Budget) -> Budget:
    """The budget to search in when plans are timed after that: predictions may be too high."""
    if budget.latency_s is None:
        return budget
    return replace(budget, latency_s=budget.latency_s * (1 + REACH))


def plan_of(trial: Trial) -> Plan:
    """The plan that a trial measured."""
    return trial.choice, bool(trial.knobs.get("equalise", False))


def hold_race(
    evidence: Evidence,
    contest: Contest,
    trials: Sequence[Trial],
    favourite: Trial,
    uniform: Mapping[str, Choice],
    *,
    objective: str,
    budget: Budget,
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
    multiple = budget.latency_multiple
    always = ALWAYS if multiple is None else (*ALWAYS, *multiple.schemes())
    baselines = {
        scheme: (choice, False)
        for scheme, choice in uniform.items()
        if scheme in always or seconds[choice] <= near
    }
    wanted = dict.fromkeys([(uniform["fp32"], False), *baselines.values()])
    usable = [t for t in trials if is_measured(t) and (t.divergence or 0.0) <= most_divergence]
    if objective in RACED:
        promising = _fast(usable, _seconds(favourite))
    else:
        promising = _around(_limit(budget), usable, objective)
    entrants = list(dict.fromkeys(map(plan_of, [favourite, *promising])))
    plans = tuple(dict.fromkeys([*wanted, *entrants[:ENTRANTS]]))
    simulator = evidence.simulator
    known: dict[Plan, Knobs] = {plan_of(trial): trial.knobs for trial in reversed(trials)}
    found: list[Entrant] = []
    for plan in plans:
        choice, is_equalised = plan
        knobs = known.get(plan, {**favourite.knobs, "equalise": is_equalised})
        found.append(
            Entrant(
                choice=choice,
                rescaled=tuple(simulator.basis(knobs).factors),
                build=partial(simulator.quantized, choice, knobs),
            )
        )
    setting = evidence.prepared.setting
    timed = contest.hold(setting, found)
    return Race(
        plans=plans,
        timed=timed,
        uniform=baselines,
        reference_s=timed.seconds[0] if setting.measured is None else setting.measured.reference_s,
    )


def _limit(budget: Budget) -> float:
    return float("inf") if budget.latency_s is None else budget.latency_s


def _seconds(trial: Trial) -> float:
    return trial.evaluation.latency_s


def _fast(trials: Sequence[Trial], least_s: float) -> list[Trial]:
    """Trials predicted near the fastest: half the places for the most accurate of each latency.

    The fastest ones differ by less than any clock can tell, and the least loss among them wins.
    """
    near = sorted((t for t in trials if _seconds(t) <= NEAR * least_s), key=_seconds)
    front = _front([t for t in near if _seconds(t) <= CLOSE * least_s], _divergence)
    return [*_spread(front, ENTRANTS // 2), *near]


def _around(limit_s: float, trials: Sequence[Trial], objective: str) -> list[Trial]:
    """Trials predicted near the limit, of each latency the best one: the nearest, and some more.

    Predictions are a few percent off, so the best one inside is near the limit. Where they are
    further off all of those may turn out slower; then a faster one must be there.
    """
    front = _front(trials, _memory if objective == "memory" else _divergence)
    near = [trial for trial in front if _seconds(trial) >= limit_s * (1 - REACH)]
    near = front[: len(front) - len(near)][-1:] + near  # one that is surely fast enough
    nearest = sorted(near, key=lambda trial: abs(_seconds(trial) - limit_s))
    return [*nearest[: ENTRANTS // 2], *_spread(near, ENTRANTS // 2 - 1)]


def _front(trials: Sequence[Trial], wanted: Callable[[Trial], float]) -> list[Trial]:
    """Those that no trial as fast beats in ``wanted``, the fastest first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (_seconds(t), wanted(t), t.number)):
        if not front or wanted(trial) < wanted(front[-1]):
            front.append(trial)
    return front


def _spread(trials: Sequence[Trial], count: int) -> list[Trial]:
    """``count`` of them (or all), first and last included, as evenly as can be."""
    last = len(trials) - 1
    places = dict.fromkeys(round(n * last / max(count - 1, 1)) for n in range(count))
    return [trials[place] for place in places if trials]


def _divergence(trial: Trial) -> float:
    return trial.divergence or 0.0


def _memory(trial: Trial) -> float:
    return trial.evaluation.memory_bytes
