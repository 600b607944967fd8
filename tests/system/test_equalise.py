"""Equalisation as part of a plan: found by the search, kept, applied, shipped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advisor import Plan, advise
from advisor.binding import bind, binding_of
from advisor.errors import PlanError
from advisor.planfile import plan_to_json
from advisor.report import render_markdown
from tests.graph.small import images, trained_cnn
from tests.graph.test_equalise import badly_scaled

INPUTS = images(128)[0]


def make_plan(model: torch.nn.Module, inputs: torch.Tensor, **options: Any) -> Plan:
    settings: dict[str, Any] = {
        "target": "intel-vnni",
        "objective": "accuracy",
        "calibration": list(torch.split(inputs, 32)),
        "schemes": ["w8a8", "w8"],
        "pin": {"expand": "w8a8", "filter": "w8a8", "project": "w8a8"},
        "trials": 12,
        "cache": False,
    }
    return advise(model, **(settings | options))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(badly_scaled(), INPUTS)


def test_the_search_finds_it(plan: Plan) -> None:
    assert plan.equalise
    plain = next(each for each in plan.baselines if each.name == "w8a8")
    assert plain.metrics.divergence is not None
    assert plan.measured.divergence is not None
    assert plan.measured.divergence.value < plain.metrics.divergence.value / 20
    assert "| Channels rescaled | on |" in render_markdown(plan)


def test_it_survives_saving_compiling_and_pinning(plan: Plan, tmp_path: Path) -> None:
    wanted = plan.apply()(INPUTS)
    loaded = Plan.load(plan.save(tmp_path / "plan.json"), model=badly_scaled())
    assert loaded.equalise
    assert torch.equal(loaded.apply()(INPUTS), wanted)
    artifact = loaded.compile(tmp_path / "build")
    assert artifact.verify().ok
    assert torch.allclose(torch.as_tensor(artifact.run(INPUTS)), wanted, atol=1e-3, rtol=1e-2)
    before = next(layer for layer in plan.layers if layer.name == "head").scheme
    other = "w8a8" if before == "w8" else "w8"
    moved = loaded.pin("head", other)
    assert moved.equalise
    exact = badly_scaled()(INPUTS)
    assert (moved.apply()(INPUTS) - exact).norm() < 0.1 * exact.norm()
    assert torch.equal(moved.pin("head", before).apply()(INPUTS), wanted)


def test_same_seed_same_plan(plan: Plan) -> None:
    assert plan_to_json(make_plan(badly_scaled(), INPUTS)) == plan_to_json(plan)


def test_a_plan_that_contradicts_its_factors_is_refused(plan: Plan) -> None:
    binding = binding_of(plan)
    altered = dataclasses.replace(plan, equalise=False)
    assert plan.diff(altered) == "equalise: True -> False"
    bind(altered, binding.graph, binding.tensors)
    with pytest.raises(PlanError, match="says equalise=False"):
        altered.apply()


def test_it_is_offered_only_where_it_can_matter() -> None:
    """Neither where no activation can be integers, nor where no channels can be rescaled."""
    weights_only = make_plan(badly_scaled(), INPUTS, pin=None, schemes=["w8"], trials=2)
    stuck = make_plan(trained_cnn(), INPUTS, pin={"*": "fp32"}, schemes=["w8a8"], trials=2)
    for plan in (weights_only, stuck):
        assert not plan.equalise
        assert all("equalise" not in trial.note for trial in plan.trials)


class PostNorm(nn.Module):
    """A post-norm feed-forward block; two channels of the norm and one of the GELU stand out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 6)
        with torch.no_grad():
            self.norm.weight[3], self.norm.weight[20] = 30, 12
            self.up.weight[:, [3, 20]] /= 20
            self.up.weight[7] *= 20
            self.down.weight[:, 7] /= 20

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        logits: torch.Tensor = self.head(F.layer_norm(x + self.down(F.gelu(self.up(x))), [32]))
        return logits


TOKENS = torch.randn(512, 4, 32, generator=torch.Generator().manual_seed(0))


def plan_smoothed() -> Plan:
    return make_plan(
        PostNorm().eval(),
        TOKENS,
        calibration=list(torch.split(TOKENS, 64)),
        schemes=["w8a8", "w8a8-dynamic"],
        pin={"up": "w8a8", "down": "w8a8-dynamic"},
    )


@pytest.fixture(scope="module")
def smoothed() -> Plan:
    return plan_smoothed()


def test_outliers_are_smoothed(smoothed: Plan, tmp_path: Path) -> None:
    """Multiplications are in the plan's cost, in the simulation and in the artifact."""
    plan = smoothed
    assert plan.equalise
    targets = [name for name in binding_of(plan).tensors if name.endswith("/factors")]
    assert {"norm/factors", "gelu/factors"} <= set(targets)
    plain = next(each for each in plan.trials if "equalise=False" in each.note and each.fits)
    assert plan.measured.divergence is not None
    assert plain.metrics.divergence is not None
    assert plan.measured.divergence.value < plain.metrics.divergence.value / 1.5
    assert plan.predicted.latency_s is not None
    assert plain.metrics.latency_s is not None
    assert plan.predicted.latency_s.value > plain.metrics.latency_s.value
    wanted = plan.apply()(TOKENS)
    loaded = Plan.load(plan.save(tmp_path / "plan.json"), model=PostNorm().eval())
    assert torch.equal(loaded.apply()(TOKENS), wanted)
    artifact = loaded.compile(tmp_path / "build")
    assert artifact.verify().ok
    found = torch.as_tensor(artifact.run(TOKENS[:1]))
    assert torch.allclose(found, plan.apply()(TOKENS[:1]), atol=1e-3, rtol=1e-2)
    moved = loaded.pin("head", "w8a8")
    assert moved.equalise
    exact = PostNorm().eval()(TOKENS)
    assert (moved.apply()(TOKENS) - exact).norm() < 0.1 * exact.norm()


def test_same_seed_same_smoothed_plan(smoothed: Plan) -> None:
    assert plan_to_json(plan_smoothed()) == plan_to_json(smoothed)
