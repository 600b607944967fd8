"""Timing whole models on LiteRT and splitting their time. No speed decides a test."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from advisor import advise
from advisor.budget import Budget
from advisor.doctor import read_cpu
from advisor.errors import MissingDependencyError
from advisor.measure import machine
from advisor.measure.machine import find_stopwatch
from advisor.measure.measure import measure_costs, workbench
from advisor.measure.terms import designs, runs_as, schemes_of
from advisor.passes.shapes import deployment_inputs
from advisor.planfile import noted_measurements
from advisor.prepare import check_deployment, prepare
from advisor.profiles.loader import load_profile
from advisor.setting import Setting
from advisor.targets import turns
from advisor.targets.base import REST, Stopwatch, Timing
from advisor.targets.registry import capability_named
from advisor.targets.tflite import TARGET, skeleton, timing

SCHEMES = ["w8a8", "w8a8-dynamic", "w4"]


class Net(nn.Module):
    """A residual convolution, a depthwise one, a pool and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.deep(x))
        found: Tensor = self.head(x.mean((2, 3)))
        return found


def model() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module", autouse=True)
def hasty() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("advisor.measure.measure.LIMIT_S", 0.1)
        patch.setattr("advisor.measure.finalists.LIMIT_S", 0.1)
        patch.setattr("advisor.measure.terms.MIXED", 2)
        patch.setattr(timing, "PIECE_S", 0.0)
        yield


@pytest.fixture(scope="module")
def setting() -> Setting:
    deployment = check_deployment(
        target="intel-vnni", runtime="tflite", batch=2, sequence=None, threads=1
    )
    return prepare(
        model(),
        torch.randn(2, 3, 8, 8),
        None,
        deployment,
        budget=Budget(),
        schemes=SCHEMES,
        pins={},
        on_unsupported="keep",
    ).setting


@pytest.fixture(scope="module")
def timed(setting: Setting) -> tuple[Timing, ...]:
    bench = workbench(setting)
    return TARGET.time_models(
        [partial(bench.build, plan) for plan in designs(setting)],
        deployment_inputs(setting.graph, 2, None),
        threads=1,
        limit_s=0.1,
        with_parts=True,
        say=lambda _done, _all: None,
    )


def test_only_weights_that_are_expanded_once_run_as_floats(setting: Setting) -> None:
    """The delegate leaves 4 bits out, and the runtime's own kernels expand them at every call."""
    stem, _deep, head = setting.graph.layers
    assert [runs_as(setting, stem, scheme) for scheme in ("fp16", "w8", "w4", "w8a8")] == [
        "fp32",
        "fp32",
        "w4",
        "w8a8",
    ]
    assert [runs_as(setting, head, scheme) for scheme in ("fp16", "w8")] == ["fp32", "w8"]


def test_target_is_a_stopwatch() -> None:
    assert isinstance(TARGET, Stopwatch)
    assert TARGET.machine()["runtime"].startswith("LiteRT ")


def test_parts_add_up_and_every_layer_has_one(setting: Setting, timed: tuple[Timing, ...]) -> None:
    plans = designs(setting)
    for plan, found in zip(plans, timed, strict=True):
        assert found.seconds > 0
        assert sum(found.parts.values()) == pytest.approx(found.seconds)
        assert found.parts[REST] > 0
        for layer, _scheme in schemes_of(setting, plan):
            assert found.parts[("layer", layer.name)] > 0
    static = next(p for p in plans if all(s == "w8a8" for _, s in schemes_of(setting, p)))
    boundaries = {part for part in timed[plans.index(static)].parts if part[0] != "layer"}
    assert boundaries == {("quantize", "x"), ("dequantize", "head"), REST}


def test_partitions_come_with_the_time(setting: Setting, timed: tuple[Timing, ...]) -> None:
    """Without 4-bit weights XNNPACK takes the whole model."""
    for plan, found in zip(designs(setting), timed, strict=True):
        schemes = {scheme for _, scheme in schemes_of(setting, plan)}
        assert found.partitions is not None
        assert (found.partitions == 1) or "w4" in schemes


def test_one_conversion_serves_every_plan(
    setting: Setting, timed: tuple[Timing, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert timed
    monkeypatch.setattr(skeleton, "convert", None)  # not called again
    costs = measure_costs(
        setting, TARGET, batch=2, sequence=None, limit_s=0.1, say=lambda _done, _all: None
    )
    assert costs.models == len(designs(setting))
    assert set(costs.quantize_s) >= {"x"}


def test_batches_of_models_are_aligned(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no memory to spare each model is timed beside the first, and all come back in order."""
    monkeypatch.setattr(turns, "free_bytes", lambda: 1.0)
    bench = workbench(setting)
    found = TARGET.time_models(
        [partial(bench.build, plan) for plan in designs(setting)[:3]],
        deployment_inputs(setting.graph, 2, None),
        threads=1,
        limit_s=0.1,
        with_parts=False,
        say=lambda _done, _all: None,
    )
    assert all(each.seconds > 0 and not each.parts for each in found)


def test_stopwatch_is_offered_where_the_runtime_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVISOR_MEASURE", "auto")
    monkeypatch.setitem(machine.FEATURE, "intel-vnni", (read_cpu().features or ("",))[0])
    profile, capability = load_profile("intel-vnni"), capability_named("tflite")
    assert find_stopwatch(profile, capability) is not None

    def missing(*_: str) -> None:
        raise MissingDependencyError("not here")

    monkeypatch.setattr("advisor.targets.tflite.packages.require", missing)
    assert find_stopwatch(profile, capability) is None


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["auto", "latency"])
def test_no_plan_is_slower_than_the_best_uniform_one(
    objective: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever the clock said in that one race, the winner is within its slack of the best."""
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("advisor.api.find_stopwatch", lambda _profile, _capability: TARGET)
    torch.manual_seed(1)
    made = advise(
        model(),
        calibration=[torch.randn(4, 3, 8, 8) for _ in range(2)],
        target="intel-vnni",
        runtime="tflite",
        objective=objective,
        schemes=SCHEMES,
        threads=1,
        batch=2,
        trials=4,
    )
    assert len(made.provenance.costs_digest) == 64
    records = noted_measurements(made)
    seconds = {each.subject: each.value for each in records if each.quantity == "latency_s"}
    parts = {each.subject: each.value for each in records if each.quantity == "partitions"}
    assert set(parts) == set(seconds) >= {"plan", "fp32", "w8a8", "w8a8-dynamic"}
    assert parts["fp32"] == 1
    limit = 0.01 if objective == "auto" else float("inf")
    admitted = [
        seconds[each.name]
        for each in made.baselines
        if each.name in seconds
        and each.metrics.divergence is not None
        and each.metrics.divergence.value <= limit
    ]
    assert seconds["plan"] <= 1.02 * min(admitted)
