"""Timing whole models on ONNX Runtime and splitting their time. No speed decides a test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from advisor import Plan, advise
from advisor.assemble import build_problem
from advisor.budget import Budget
from advisor.measure import measure
from advisor.measure.measure import explain, measure_costs, workbench
from advisor.measure.terms import designs, find_terms, schemes_of
from advisor.passes.shapes import deployment_inputs
from advisor.planfile import load_measurements, noted_measurements, plan_to_json
from advisor.prepare import check_deployment, prepare
from advisor.report.data import report_data
from advisor.search.problem import evaluate
from advisor.setting import Setting
from advisor.targets import turns
from advisor.targets.base import REST, Stopwatch, Timing
from advisor.targets.onnxruntime import TARGET
from advisor.targets.onnxruntime.profiling import parts_of, read_nodes

SCHEMES = ["w8a8", "w8"]


class Net(nn.Module):
    """A residual convolution, a depthwise one, a pool and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.deep(x))
        found: torch.Tensor = self.head(x.mean((2, 3)))
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
        yield


@pytest.fixture(scope="module")
def setting() -> Setting:
    deployment = check_deployment(
        target="intel-vnni", runtime=None, batch=2, sequence=None, threads=1
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
        limit_s=0.5,
        with_parts=True,
        say=lambda _done, _all: None,
    )


def test_target_is_a_stopwatch() -> None:
    assert isinstance(TARGET, Stopwatch)
    assert TARGET.machine()["runtime"].startswith("onnxruntime ")


def test_parts_add_up_and_every_layer_has_one(setting: Setting, timed: tuple[Timing, ...]) -> None:
    plans = designs(setting)
    for plan, found in zip(plans, timed, strict=True):
        assert found.seconds > 0
        assert found.noise >= 0
        assert sum(found.parts.values()) == pytest.approx(found.seconds)
        for layer, _scheme in schemes_of(setting, plan):
            assert found.parts[("layer", layer.name)] > 0
    static = next(p for p in plans if all(s == "w8a8" for _, s in schemes_of(setting, p)))
    boundaries = {kind for kind, _ in timed[plans.index(static)].parts}
    assert boundaries == {"layer", "quantize", "dequantize", "rest"}


def test_designs_begin_in_float_and_hold_each_scheme(setting: Setting) -> None:
    plans = designs(setting)
    assert {scheme for _, scheme in schemes_of(setting, plans[0])} == {"fp32"}
    assert len(set(plans)) == len(plans)
    for scheme in SCHEMES:
        assert any(all(s == scheme for _, s in schemes_of(setting, plan)) for plan in plans)
    assert designs(setting) == plans


def test_rows_count_what_a_plan_is_made_of(setting: Setting) -> None:
    terms = find_terms(setting)
    plans = designs(setting)
    layers = [column for term, column in terms.columns.items() if term[0] == "layer"]
    for plan in plans:
        assert terms.row(plan)[layers].sum() == len(setting.graph.layers)
    others = [c for t, c in terms.columns.items() if t[0] in ("quantize", "dequantize", "integer")]
    assert terms.row(plans[0])[others].sum() == 0


def test_costs_explain_the_timed_models(setting: Setting) -> None:
    """Made-up times that are sums of terms, seen by a profiler that errs by up to a tenth.

    The costs give the sums back, through the problem that the search solves.
    """
    terms, plans = find_terms(setting), designs(setting)
    rng = np.random.default_rng(0)
    draw = rng.uniform(1e-4, 2e-4, len(terms.columns))
    truth = dict(zip(terms.columns, map(float, draw), strict=True))
    truth |= {term: -2e-6 for term in truth if term[0] == "integer"}
    truth |= {t: truth[(*t[:2], "fp32")] + 5e-5 for t in truth if t[2] == "w8"}
    timings: list[Timing] = []
    for plan in plans:
        row = dict(zip(terms.columns, terms.row(plan), strict=True))
        parts = {
            ("layer", layer.name): truth[terms.term(layer, scheme)]
            for layer, scheme in schemes_of(setting, plan)
        }
        parts |= {term[:2]: truth[term] for term in row if row[term] and term[0] != "layer"}
        seen = {
            part: seconds * float(rng.uniform(0.9, 1.1))
            for part, seconds in parts.items()
            if part[0] != "integer"
        }
        whole, scale = sum(parts.values()), sum(parts.values()) / sum(seen.values())
        seen = {part: seconds * scale for part, seconds in seen.items()}
        timings.append(Timing(seconds=whole, noise=0.001, parts=seen))
    costs = explain(setting, plans, timings, {"cpu": "none", "runtime": "none"})
    problem = build_problem(setting.with_measured(costs))
    for plan, found in zip(plans, timings, strict=True):
        assert evaluate(problem, plan).latency_s == pytest.approx(found.seconds, rel=0.05)


def test_weight_that_is_only_stored_saves_no_time(setting: Setting) -> None:
    costs = measure_costs(
        setting, TARGET, batch=2, sequence=None, limit_s=0.1, say=lambda _done, _all: None
    )
    assert costs.models == len(designs(setting))
    for layer in setting.graph.layers:
        seconds = costs.layers[layer.name]
        assert set(seconds) == {"fp32", *SCHEMES}
        assert all(value >= 0 for value in seconds.values())
        assert seconds["w8"] >= seconds["fp32"]
        if layer.op == "conv2d":  # expanded when the model is opened: the same kernel
            assert seconds["w8"] == seconds["fp32"]


def test_batches_of_models_are_aligned(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no memory to spare each model is timed beside the first, and all come back in order."""
    monkeypatch.setattr(turns, "free_bytes", lambda: 1.0)
    bench, seen = workbench(setting), list[tuple[int, int]]()
    found = TARGET.time_models(
        [partial(bench.build, plan) for plan in designs(setting)[:3]],
        deployment_inputs(setting.graph, 2, None),
        threads=1,
        limit_s=0.1,
        with_parts=False,
        say=lambda done, total: seen.append((done, total)),
    )
    assert len(found) == 3
    assert all(each.seconds > 0 and not each.parts for each in found)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_profile_of_several_runs_is_read_without_the_first(tmp_path: Path) -> None:
    def event(name: str, operator: str, index: int, us: int) -> dict[str, Any]:
        args = {"op_name": operator, "node_index": str(index)}
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": us, "args": args}

    events = [{"cat": "Session", "name": "model_run", "dur": 999, "args": {}}]
    for us in (100, 10, 10, 10):
        events += [event("fc", "Gemm", 0, us), event("relu", "Relu", 1, 2 * us)]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(events))
    nodes = read_nodes(path, runs=4)
    assert nodes == pytest.approx({("fc", "Gemm"): 1e-5, ("relu", "Relu"): 2e-5})
    parts = parts_of(nodes, {"fc": ("layer", "fc")})
    assert parts == pytest.approx({("layer", "fc"): 1e-5, REST: 2e-5})


def plan_net(**options: Any) -> Plan:
    torch.manual_seed(1)
    batches = [torch.randn(4, 3, 8, 8) for _ in range(2)]
    settings: dict[str, Any] = {
        "target": "intel-vnni",
        "threads": 1,
        "batch": 2,
        "schemes": SCHEMES,
        "calibration": batches,
        "trials": 4,
    }
    return advise(model(), **(settings | options))


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Measures on whatever processor runs the tests, with a cache of its own."""
    monkeypatch.setenv("ADVISOR_MEASURE", "auto")
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("advisor.api.find_stopwatch", lambda _profile, _capability: TARGET)


@pytest.mark.usefixtures("measuring")
def test_same_machine_same_plan_once_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stages: set[str] = set()
    first = plan_net(progress=lambda stage, _done, _all: stages.add(stage))
    assert {"measure", "time"} <= stages
    assert len(first.provenance.costs_digest) == 64
    monkeypatch.setattr(measure, "measure_costs", None)  # not called again
    again = plan_net()
    assert plan_to_json(again) == plan_to_json(first)
    assert noted_measurements(again) == noted_measurements(first)
    assert first.predicted.latency_s is not None
    assert first.predicted.latency_s.origin == "modelled"
    assert "measured on this machine" in first.predicted.latency_s.how
    subjects = {each.subject: each for each in noted_measurements(first)}
    assert {"plan", "fp32", "w8a8"} <= set(subjects)
    assert str(subjects["plan"].value) not in plan_to_json(first)

    path = first.save(tmp_path / "plan.json")
    first.save(path)  # adds nothing twice
    assert len(load_measurements(path)) == len(subjects)
    data = report_data(Plan.load(path))
    for row in data.comparison:
        if row.name in ("this plan", "fp32", "w8a8"):
            assert row.metrics.latency_s is not None
            assert row.metrics.latency_s.origin == "measured"


@pytest.mark.slow
@pytest.mark.usefixtures("measuring")
@pytest.mark.parametrize("objective", ["auto", "latency"])
def test_no_plan_is_slower_than_the_best_uniform_one(objective: str) -> None:
    """Whatever the clock said in that one race, the winner is within its slack of the best."""
    made = plan_net(objective=objective)
    seconds = {each.subject: each.value for each in noted_measurements(made)}
    limit = 0.01 if objective == "auto" else float("inf")
    admitted = [
        seconds[each.name]
        for each in made.baselines
        if each.name in ("fp32", "w8a8")
        and each.metrics.divergence is not None
        and each.metrics.divergence.value <= limit
    ]
    assert seconds["plan"] <= 1.02 * min(admitted)


def test_modelled_plan_has_no_timings(tmp_path: Path) -> None:
    made = plan_net(cache=False, trials=1)
    assert made.provenance.costs_digest == ""
    assert noted_measurements(made) == ()
    made.save(tmp_path / "plan.json")
    assert not (tmp_path / "plan.measured.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("measuring")
def test_pin_of_a_measured_plan_moves_its_latency_by_the_layers() -> None:
    made = plan_net(objective="accuracy", trials=1)
    moved = made.pin("head", "w8")
    assert made.predicted.latency_s is not None
    assert moved.predicted.latency_s is not None
    change = sum(d.latency_s for d in moved.layers) - sum(d.latency_s for d in made.layers)
    assert moved.predicted.latency_s.value == pytest.approx(made.predicted.latency_s.value + change)
    assert "conversions" in moved.predicted.latency_s.how
