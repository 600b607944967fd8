"""A plan whose layers quantize their input at run time, from advise to a saved and loaded plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from advisor import Plan, advise

SCHEMES = {"0": "w8a8-dynamic", "2": "w4a8-dynamic-g32", "4": "w8"}


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4)]
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def plan() -> Plan:
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(16, 64, generator=generator) for _ in range(4)]
    made = advise(
        model(),
        target="intel-vnni",
        calibration=batches,
        batch=4,
        schemes=["w8", "w8a8-dynamic", "w4a8-dynamic-g32"],
        trials=4,
        cache=False,
    )
    for layer, scheme in SCHEMES.items():
        made = made.pin(layer, scheme)
    return made


def test_the_plan_says_what_every_layer_does(plan: Plan) -> None:
    assert {layer.name: layer.scheme for layer in plan.layers} == SCHEMES
    dynamic, blocked, _ = plan.layers
    weight_only = next(o for o in dynamic.options if o.scheme == "w8")
    assert dynamic.latency_s != weight_only.latency_s
    assert dynamic.divergence > 0
    assert blocked.size_bytes == 64 * 64 // 2 + 64 * 2 * 4


def test_a_saved_plan_computes_the_same(plan: Plan, tmp_path: Path) -> None:
    loaded = Plan.load(plan.save(tmp_path / "plan.json"), model=model())
    x = torch.randn(4, 64)
    with torch.no_grad():
        found = plan.apply()(x)
        assert torch.equal(loaded.apply()(x), found)
        # One scale for the batch: a sample with others is not what it is alone.
        assert not torch.equal(plan.apply()(x[:1]), found[:1])


def test_it_stands_beside_the_other_uniform_schemes(plan: Plan, tmp_path: Path) -> None:
    assert {"fp32", "w8", "w8a8-dynamic", "w4a8-dynamic-g32"} == {b.name for b in plan.baselines}
    assert "w8a8-dynamic" in plan.report(tmp_path / "report.md").read_text(encoding="utf-8")


def test_what_ships_is_what_was_simulated(plan: Plan, tmp_path: Path) -> None:
    artifact = plan.compile(tmp_path / "build")
    check = artifact.verify()
    assert check.ok
    assert check.layers_matched == 3
    x = torch.randn(4, 64)
    with torch.no_grad():
        simulated, original = plan.apply()(x), model()(x)
    shipped = torch.as_tensor(artifact.run(x))
    assert (shipped - simulated).norm() <= 0.1 * (simulated - original).norm()
