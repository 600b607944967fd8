"""Equalisation as part of a plan: found by the search, kept, applied, shipped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from advisor import Plan, advise
from advisor.binding import bind, binding_of
from advisor.errors import PlanError
from advisor.planfile import plan_to_json
from advisor.report import render_markdown
from tests.graph.small import images, trained_transformer
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
    assert "| Cross-layer equalisation | on |" in render_markdown(plan)


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
    """A transformer whose feed-forward layers have a GELU between them has no chain."""
    ids = torch.randint(0, 24, (64, 12), generator=torch.Generator().manual_seed(0))
    plan = make_plan(trained_transformer(), ids, pin=None, trials=2)
    assert not plan.equalise
    assert all("equalise" not in trial.note for trial in plan.trials)
    weights_only = make_plan(badly_scaled(), INPUTS, pin=None, schemes=["w8"], trials=2)
    assert all("equalise" not in trial.note for trial in weights_only.trials)
