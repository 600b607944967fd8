"""Timing has the last word under a latency limit: a clock that follows a script, known answers."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from advisor import Plan, advise
from advisor.budget import Budget
from advisor.measure.finalists import TimedPlans
from advisor.passes.graph import QuantizedGraph
from advisor.planfile import noted_measurements
from advisor.race import Race, plan_of
from advisor.report.data import report_data
from advisor.search.problem import Evaluation
from advisor.search.trial import Trial
from advisor.targets.base import Timing

MICROSECONDS = {"fp32": 4.0, "w8a8": 1.0}
"""Of every layer of the model, by scheme; nothing else takes any time."""


class ScriptedClock:
    """Layers take what ``MICROSECONDS`` says; in the race, plans with integers ``late`` times that,
    and the whole machine is slower by half."""

    def __init__(self, late: float) -> None:
        self.late = late

    def time_models(
        self,
        builders: Sequence[Callable[[], QuantizedGraph]],
        inputs: Sequence[Any],
        *,
        threads: int | None,
        limit_s: float,
        with_parts: bool,
        say: Callable[[int, int], None],
    ) -> tuple[Timing, ...]:
        del inputs, threads, limit_s, say
        found: list[Timing] = []
        for build in builders:
            parts = {
                ("layer", name): MICROSECONDS[layer.scheme] * 1e-6
                for name, layer in build().assignment.items()
            }
            seconds = sum(parts.values())
            if not with_parts:
                late = self.late if len(set(parts.values())) > 1 or seconds < 16e-6 else 1.0
                seconds, parts = 1.5 * late * seconds, {}
            found.append(Timing(seconds=seconds, noise=0.0, parts=parts))
        return tuple(found)

    def machine(self) -> Mapping[str, str]:
        return {"cpu": "a scripted clock", "runtime": "none"}


class Blocks(nn.Module):
    """Eight layers, no two of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        sizes = range(16, 25)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def plan_blocks(
    monkeypatch: pytest.MonkeyPatch, late: float, *, objective: str, latency: float | str
) -> Plan:
    monkeypatch.setattr("advisor.api.find_stopwatch", lambda *_: ScriptedClock(late))
    torch.manual_seed(0)
    return advise(
        Blocks(),
        calibration=[torch.randn(32, 16) for _ in range(2)],
        target="intel-vnni",
        budget={"latency": latency},
        objective=objective,
        schemes=list(MICROSECONDS),
        trials=12,
        cache=False,
    )


def latency(plan: Plan, subject: str = "plan") -> float:
    """By the clock, at the speed that the costs were measured at."""
    return {each.subject: each.value for each in noted_measurements(plan)}[subject] / 1.5


@pytest.mark.parametrize("late", [1.0, 1.1, 0.92])
def test_the_latency_limit_is_kept_by_the_clock(
    monkeypatch: pytest.MonkeyPatch, late: float
) -> None:
    """20 microseconds are four layers of eight in float, or fewer when the clock is slower."""
    plan = plan_blocks(monkeypatch, late, objective="accuracy", latency=20.5e-6)
    floats = sum(layer.scheme == "fp32" for layer in plan.layers)
    assert latency(plan) == pytest.approx(late * (8 + 3 * floats) * 1e-6)
    assert latency(plan) <= 20.5e-6
    # One more layer in float would be over the limit, by the clock.
    assert late * (8 + 3 * (floats + 1)) > 20.5


def test_a_multiple_of_int8_is_one_of_what_int8_took_in_the_race(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All-int8 is predicted at 8 microseconds and takes 8.8, as every plan with integers takes a
    tenth more. One layer in float is 12.1, within 1.4 times that, and not within 1.4 times 8."""
    plan = plan_blocks(monkeypatch, 1.1, objective="accuracy", latency="1.4x int8")
    assert latency(plan, "w8a8") == pytest.approx(8.8e-6)
    assert latency(plan) == pytest.approx(12.1e-6)
    fixed = plan_blocks(monkeypatch, 1.1, objective="accuracy", latency=1.4 * 8e-6)
    assert latency(fixed) == pytest.approx(8.8e-6)

    assert plan.budget == "latency<=1.4x int8"
    (bound,) = report_data(plan).bounds
    assert bound.limit == pytest.approx(1.5 * 1.4 * 8.8e-6)  # as the clock said
    assert bound.fits


def test_memory_objective_is_timed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_blocks(monkeypatch, 1.1, objective="memory", latency=30e-6)
    assert latency(plan) <= 30e-6


def test_a_limit_no_plan_keeps_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predicted inside, but all plans are late: the fastest comes back, and the plan says so."""
    plan = plan_blocks(monkeypatch, 3.0, objective="accuracy", latency=20.5e-6)
    assert all(layer.scheme == "w8a8" for layer in plan.layers)
    assert "over the latency limit" in plan.outcome
    assert latency(plan) == pytest.approx(24e-6)


def test_a_plan_equalised_has_a_time_of_its_own() -> None:
    """The same choice may take multiplications more."""
    evaluation = Evaluation(size_bytes=1, memory_bytes=1, latency_s=1.0, divergence=0.1)
    trials = [
        Trial(
            number=number,
            choice=(1,),
            knobs={"equalise": bool(number)},
            divergence=0.1,
            evaluation=evaluation,
            feasible=True,
            origin="start",
        )
        for number in range(2)
    ]
    plans = tuple(plan_of(trial) for trial in trials)
    timed = TimedPlans(seconds=(1.0, 2.0), noise=(0.0, 0.0), when="", machine={})
    race = Race(plans=plans, timed=timed, uniform={"w8a8": plans[0]}, reference_s=1.0)
    assert race.by_trial(trials, Budget()) == {0: 1.0, 1: 2.0}
    assert [t.number for t in race.inside(trials, Budget(latency_s=1.5))] == [0]
    assert "w8a8" in race.remark(trials[0], Budget())
    assert race.remark(trials[1], Budget()) == ""
