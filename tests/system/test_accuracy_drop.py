"""The fastest, or smallest, plan whose metric stays within the drop, against brute force."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import advisor.api
from advisor import Plan, advise
from advisor.choose import Chosen, choose
from advisor.evidence import Evidence
from advisor.search.boundary import TESTS
from advisor.search.objective import LATENCY_SLACK
from advisor.search.problem import Choice, Evaluation, evaluate
from tests.graph.test_race import ScriptedClock
from tests.system.small import IMAGES

SCHEMES = ("w8a8-dynamic", "w4-g32", "w2-g32")
RESOLUTION = 1.005
UNIFORM = 8
"""Uniform plans in every report, at most, on which the metric is run as well."""


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Three linear layers on the digits, trained."""
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(64, 10))
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(150):
        at = torch.randint(len(IMAGES.calibration), (64,))
        loss = F.cross_entropy(network(IMAGES.calibration[at]), IMAGES.calibration_labels[at])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    return network.eval()


def sureness(module: nn.Module) -> torch.Tensor:
    """Probability of the right class, of every test image: finer than being right or wrong."""
    with torch.no_grad():
        sure: torch.Tensor = module(IMAGES.test).softmax(1).gather(1, IMAGES.test_labels[:, None])
    return sure[:, 0].double()


@dataclass
class Spy:
    """What ``advise`` chose, and the metric of every assignment under the first knobs."""

    metrics: dict[Choice, float] = field(default_factory=dict[Choice, float])
    costs: dict[Choice, Evaluation] = field(default_factory=dict[Choice, Evaluation])
    chosen: list[Chosen] = field(default_factory=list[Chosen])

    def choose(self, evidence: Evidence, **options: Any) -> Chosen:
        if not self.metrics:
            sizes = [range(len(each)) for each in evidence.problem.candidates]
            for choice in itertools.product(*sizes):
                module = evidence.simulator.quantized(choice, {"observer": "mse"}).module
                self.metrics[choice] = float(options["metric"](module).mean())
                self.costs[choice] = evaluate(evidence.problem, choice)
        self.chosen.append(choose(evidence, **options))
        return self.chosen[-1]


@pytest.fixture(scope="module")
def spy() -> Spy:
    return Spy()


def plan_within(
    drop: float, objective: str, model: nn.Module, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> tuple[Plan, int]:
    """The plan, and how often the metric was run for it."""
    monkeypatch.setattr(advisor.api, "choose", spy.choose)
    runs = 0

    def metric(module: nn.Module) -> torch.Tensor:
        nonlocal runs
        runs += 1
        return sureness(module)

    known = len(spy.metrics)
    plan = advise(
        model,
        target="intel-vnni",
        calibration=IMAGES.calibration_batches(64)[:4],
        schemes=SCHEMES,
        metric=metric,
        objective=objective,
        budget={"accuracy_drop": drop},
        batch=64,
        trials=12,
        cache=False,
    )
    return plan, runs - (len(spy.metrics) - known)


@pytest.mark.parametrize("objective", ["auto", "latency", "memory"])
@pytest.mark.parametrize("share", [0.25, 0.75])
def test_no_assignment_that_passes_is_cheaper(
    share: float, objective: str, model: nn.Module, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All 343 assignments, and drops that a quarter and three quarters of them keep.

    Up to the resolution: of latencies the slack that is no reason to lose more, of memory half a
    per cent, because the metric is not quite monotone along the front.
    """
    original = float(sureness(model).mean())
    if not spy.metrics:
        plan_within(0.01, objective, model, spy, monkeypatch)
    ordered = sorted(1 - value / original for value in spy.metrics.values())
    assert len(ordered) == 7**3
    drop = ordered[round(share * len(ordered))]
    plan, runs = plan_within(drop, objective, model, spy, monkeypatch)
    passing = [c for c, value in spy.metrics.items() if value >= original - drop * original]
    assert 0 < len(passing) < len(ordered)
    quantity = "memory_bytes" if objective == "memory" else "latency_s"
    slack = RESOLUTION if objective == "memory" else 1 + LATENCY_SLACK
    least = min(getattr(spy.costs[choice], quantity) for choice in passing)
    found = getattr(spy.chosen[-1].winner.evaluation, quantity)
    assert found <= least * slack * (1 + 1e-9)
    # And it passes, by the module that the plan stands for.
    own = float(sureness(plan.apply()).mean())
    assert own >= original * (1 - drop)
    assert plan.drop is not None
    assert plan.drop.value == pytest.approx(1 - own / original)
    assert plan.drop.limit == drop
    assert runs <= 1 + TESTS + UNIFORM + UNIFORM


def test_the_interval_says_when_the_examples_cannot_tell(
    model: nn.Module, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = plan_within(0.003, "memory", model, spy, monkeypatch)
    assert plan.drop is not None
    assert plan.drop.low is not None
    assert plan.drop.high is not None
    assert plan.drop.low <= plan.drop.value <= min(plan.drop.high, 0.003)
    assert plan.drop.examples == len(IMAGES.test)
    cannot_tell = plan.drop.high > 0.003
    assert ("too few to tell that it is within 0.30%" in plan.outcome) == cannot_tell
    # The exact drop as the limit: the interval cannot end below its own middle.
    sharp, _ = plan_within(plan.drop.value + 1e-9, "memory", model, spy, monkeypatch)
    assert sharp.drop is not None
    assert sharp.drop.high is not None
    assert sharp.drop.high > plan.drop.value
    assert "too few to tell" in sharp.outcome


def test_no_plan_passes_and_the_plan_says_so(
    model: nn.Module, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = sureness(model)

    def metric(module: nn.Module) -> torch.Tensor:
        """Every change counts as a loss of half."""
        same = torch.equal(sureness(module), reference)
        return reference if same else reference / 2

    plan = advise(
        model,
        target="intel-vnni",
        calibration=IMAGES.calibration_batches(64)[:4],
        schemes=SCHEMES,
        metric=metric,
        budget={"accuracy_drop": 0.01, "size": "30kB"},
        trials=8,
        cache=False,
    )
    assert "none of" in plan.outcome
    assert plan.drop is not None
    assert plan.drop.value == pytest.approx(0.5)


class Blocks(nn.Module):
    """Five layers, no two of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        sizes = range(16, 22)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def test_where_plans_are_timed_the_fastest_by_the_clock_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Float layers take four times as long: no plan of fewer float layers keeps the drop."""
    monkeypatch.setattr("advisor.api.find_stopwatch", lambda *_: ScriptedClock(1.0))
    torch.manual_seed(0)
    network, images = Blocks().eval(), torch.randn(64, 16)
    with torch.no_grad():
        reference = network(images)

    def metric(module: nn.Module) -> torch.Tensor:
        lost: torch.Tensor = (module(images) - reference).square().mean(1) / reference.square().mean()
        return 1 - lost.sqrt()

    spy = Spy()
    monkeypatch.setattr(advisor.api, "choose", spy.choose)

    def plan(drop: float) -> Plan:
        return advise(
            network,
            target="intel-vnni",
            calibration=list(torch.split(images, 32)),
            schemes=["w8a8"],
            metric=metric,
            budget={"accuracy_drop": drop},
            trials=12,
            cache=False,
        )

    plan(0.5)

    def by_floats() -> Mapping[int, float]:
        """The best metric of any assignment, by the number of its float layers."""
        best: dict[int, float] = {}
        for choice, value in spy.metrics.items():
            floats = round((spy.costs[choice].latency_s * 1e6 - 5) / 3)
            best[floats] = max(best.get(floats, 0.0), value)
        return best

    best = by_floats()
    drop = 1 - (best[2] + 2 * best[3]) / 3  # a plan of three float layers keeps it
    found = plan(drop)
    floats = sum(layer.scheme == "fp32" for layer in found.layers)
    assert floats <= min(count for count, value in best.items() if value >= 1 - drop)
    assert found.drop is not None
    assert found.drop.value <= drop
