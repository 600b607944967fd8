"""The main job end to end, on the trained digits network and on small models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from advisor import Plan, advise
from advisor.demo import digits
from advisor.errors import InfeasibleError, InputError, UnsupportedError
from advisor.planfile import plan_to_json
from tests.system import small
from tests.system.small import IMAGES, plan_small

TRIALS = 4


def plan_digits(**options: Any) -> Plan:
    settings: dict[str, Any] = {
        "target": "intel-vnni",
        "budget": "size=150kB",
        "objective": "accuracy",
        "calibration": IMAGES.calibration_batches(64),
        "trials": TRIALS,
        "cache": False,
    }
    return advise(digits.load(), **(settings | options))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_digits()


@pytest.fixture(scope="module")
def artifact(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return plan.compile(tmp_path_factory.mktemp("artifact") / "build")


@pytest.fixture(scope="module")
def fastest() -> Plan:
    return plan_digits(objective="auto", budget=None)


def value(plan: Plan, quantity: str) -> float:
    found = getattr(plan.measured, quantity) or getattr(plan.predicted, quantity)
    assert found is not None
    return float(found.value)


def test_main_job(plan: Plan, artifact: Any, tmp_path: Path) -> None:
    check = artifact.verify()
    assert check.ok
    assert check.layers_matched == check.layers_total == len(plan.layers) == 10
    assert value(plan, "size_bytes") <= 150_000
    report = plan.report(tmp_path / "report.md")
    assert "intel-vnni" in report.read_text()
    assert IMAGES.accuracy(artifact.run) >= IMAGES.accuracy(digits.load()) - 0.01


def test_artifact_is_what_was_simulated(plan: Plan, artifact: Any) -> None:
    images = IMAGES.test[:200]
    with torch.no_grad():
        simulated, original = plan.apply()(images), digits.load()(images)
    shipped = torch.as_tensor(artifact.run(images))
    assert (shipped - simulated).norm() <= 0.1 * (simulated - original).norm()


def test_predicted_size_is_the_initialisers_on_disk(plan: Plan, artifact: Any) -> None:
    import onnx

    model = onnx.load(artifact.path / "model.onnx")
    stored = sum(
        -(
            -int(np.prod(i.dims))
            * {22: 4, 26: 2, 3: 8, 2: 8, 10: 16, 7: 64}.get(i.data_type, 32)
            // 8
        )
        for i in model.graph.initializer
    )
    # Activation scales, shapes and axes are a few bytes each and no layer's weight.
    assert value(plan, "size_bytes") <= stored <= value(plan, "size_bytes") + 1000


def test_same_seed_same_plan_byte_for_byte(plan: Plan) -> None:
    assert plan_to_json(plan_digits()) == plan_to_json(plan)


def test_saved_plan_needs_no_rounding(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan.save(tmp_path / "plan.json")

    def refuse(*_: object) -> None:
        raise AssertionError("rounded again")

    monkeypatch.setattr("advisor.passes.rounding.rtn.round_to_nearest", refuse)
    monkeypatch.setattr("advisor.passes.rounding.ALGORITHMS", {})
    loaded = Plan.load(tmp_path / "plan.json", model=digits.load())
    assert plan_to_json(loaded) == plan_to_json(plan)
    images = IMAGES.test[:16]
    with torch.no_grad():
        torch.testing.assert_close(loaded.apply()(images), plan.apply()(images), rtol=0, atol=0)
    assert loaded.compile(tmp_path / "build").verify().ok


def test_plan_of_a_named_factory_finds_its_model_again(tmp_path: Path) -> None:
    made = advise(
        "tests.system.small:build", target="intel-vnni", budget="size=200kB", trials=1, cache=False
    )
    made.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded.model is not None
    assert loaded.compile(tmp_path / "build").verify().ok


def test_plan_is_no_worse_than_any_uniform_scheme_that_fits(plan: Plan) -> None:
    for baseline in plan.baselines:
        divergence = baseline.metrics.divergence
        assert divergence is not None
        if baseline.fits:
            assert value(plan, "divergence") <= divergence.value * (1 + 1e-9)


def test_baselines_always_hold_fp32_fp16_and_the_uniform_schemes(plan: Plan) -> None:
    names = {baseline.name for baseline in plan.baselines}
    assert {"fp32", "fp16", "w8a8", "w8", "w4-g32"} <= names
    fp32 = next(b for b in plan.baselines if b.name == "fp32")
    assert fp32.metrics.divergence is not None
    assert fp32.metrics.divergence.value == 0.0
    assert not fp32.fits


def test_every_number_says_where_it_is_from(plan: Plan) -> None:
    for metrics in (plan.predicted, plan.measured, *(b.metrics for b in plan.baselines)):
        for name in ("size_bytes", "memory_bytes", "latency_s", "divergence", "metric"):
            quantity = getattr(metrics, name)
            if quantity is not None:
                assert quantity.origin in ("measured", "modelled")
                assert quantity.how


def test_auto_takes_the_fastest_inside_the_loss(fastest: Plan) -> None:
    assert value(fastest, "divergence") <= 0.01
    fp32 = next(b for b in fastest.baselines if b.name == "fp32")
    assert fp32.metrics.latency_s is not None
    assert value(fastest, "latency_s") < fp32.metrics.latency_s.value
    assert "fastest" in fastest.outcome


def test_latency_and_memory_budgets_hold(fastest: Plan) -> None:
    limit = value(fastest, "latency_s") * 1.2
    made = plan_digits(budget={"latency": limit, "memory": "300kB"}, objective="accuracy")
    assert value(made, "latency_s") <= limit
    assert value(made, "memory_bytes") <= 300_000


def test_metric_and_accuracy_drop() -> None:
    made = plan_digits(
        budget={"size": "200kB", "accuracy_drop": 0.01},
        metric=IMAGES.calibration_correct,
        objective="auto",
    )
    assert made.measured.metric is not None
    assert made.measured.metric.value >= 0.98
    assert "drop" in made.outcome


def test_pins_hold_and_are_explained() -> None:
    made = plan_small(pin={"head": "fp16", "op:conv2d": "w8a8"})
    schemes = {layer.name: layer.scheme for layer in made.layers}
    assert schemes.pop("head") == "fp16"
    assert set(schemes.values()) == {"w8a8"}
    assert all("pinned" in layer.reason for layer in made.layers)


def test_pin_after_the_fact(plan: Plan) -> None:
    moved = plan.pin("head", "w8")
    assert {layer.name: layer.scheme for layer in moved.layers}["head"] == "w8"
    others = [la for la in plan.layers if la.name != "head"]
    assert [la for la in moved.layers if la.name != "head"] == others
    assert "head" in plan.diff(moved)
    with torch.no_grad():
        moved.apply()(IMAGES.test[:4])
    with pytest.raises(InfeasibleError, match="size"):
        plan.pin("*", "fp32")
    with pytest.raises(UnsupportedError, match="divide"):
        plan.pin("stem.conv", "w4-g32")


def test_card_call_infers_inputs_and_says_that_calibration_is_synthetic(tmp_path: Path) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, stride=4)
            self.head = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(torch.relu(self.conv(x)).mean((2, 3)))
            return found

    made = advise(Small(), target="m2", budget="4GB", trials=1, cache=False)
    assert made.runtime == "coreml"
    assert made.provenance.calibration.synthetic
    assert any("inferred" in note for note in made.notes)
    for suffix in ("md", "html", "json"):
        text = made.report(tmp_path / f"report.{suffix}").read_text()
        assert "synthetic" in text


@pytest.mark.parametrize("target", ["m2", "h100", "arm-neon", "tpu-v5e", "intel-vnni"])
def test_every_profile_gets_a_plan_and_a_report(target: str, tmp_path: Path) -> None:
    made = plan_small(target=target)
    assert made.target == target
    assert json.loads(made.report(tmp_path / "report.json").read_text())
    assert len(made.layers) == 3


def test_calibration_generator_is_read_once() -> None:
    served = 0

    def batches() -> Any:
        nonlocal served
        for batch in IMAGES.calibration_batches(64):
            served += 1
            yield batch

    made = plan_small(calibration=batches())
    assert served == 4
    assert made.provenance.calibration.batches == 4
    assert made.provenance.calibration.scoring_samples == 128
    assert made.provenance.calibration.held_out_samples == 128


def test_loss_replaces_the_divergence() -> None:
    def loss(outputs: torch.Tensor, reference: torch.Tensor) -> float:
        return float((outputs - reference).abs().mean()) + 5.0

    made = plan_small(loss=loss, budget="size=4kB")
    assert value(made, "divergence") > 5.0
    assert any("loss" in note for note in made.notes)


def test_dropped_plan_releases_its_model() -> None:
    import gc
    import weakref

    made = plan_small()
    made.apply()
    seen = weakref.ref(made)
    del made
    gc.collect()
    assert seen() is None


def test_loss_that_overflows_on_some_plans_leaves_no_number(tmp_path: Path) -> None:
    calls = 0

    def loss(_outputs: torch.Tensor, _reference: torch.Tensor) -> float:
        nonlocal calls
        calls += 1
        return 0.5 if calls <= 2 else float("nan")

    made = plan_small(loss=loss, objective="accuracy", trials=TRIALS)
    assert any(trial.metrics.divergence is None for trial in made.trials)
    assert made.measured.divergence is not None
    assert "loss" in made.measured.divergence.how
    assert Plan.load(made.save(tmp_path / "plan.json")).measured == made.measured


def test_kept_trials_are_used_only_for_the_same_question(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path))
    options: dict[str, Any] = {"trials": TRIALS, "schemes": ["w8a8", "w8"]}
    alone = plan_to_json(plan_small(**options))
    plan_small(**options, objective="accuracy", cache=True)
    for _ in range(2):
        assert plan_to_json(plan_small(**options, cache=True)) == alone
    assert len(list(tmp_path.rglob("*.journal"))) == 2
    # Two losses of one name are different questions: neither is kept.
    low, high = (
        plan_small(**options, cache=True, loss=lambda _a, _b, at=at: at) for at in (0.25, 0.75)
    )
    assert (value(low, "divergence"), value(high, "divergence")) == (0.25, 0.75)
    assert len(list(tmp_path.rglob("*.journal"))) == 2


@pytest.mark.parametrize("objective", ["latency", "memory"])
def test_accuracy_drop_limits_every_objective(objective: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10)]
    model = nn.Sequential(*layers).eval()  # wide enough that integers are faster
    reference = model(IMAGES.calibration[:64]).detach()

    def metric(module: nn.Module) -> float:
        return 1.0 - float((module(IMAGES.calibration[:64]) - reference).abs().max())

    options: dict[str, Any] = {"model": model, "objective": objective, "metric": metric}
    free = plan_small(**options, trials=TRIALS)
    drop = (1.0 - value(free, "metric")) / 2
    held = plan_small(**options, trials=TRIALS, budget={"accuracy_drop": drop})
    assert value(free, "metric") < 1.0 - drop <= value(held, "metric")
    assert "finalists within" in held.outcome


def test_metric_may_be_an_array_of_any_float() -> None:
    made = plan_small(metric=lambda _: torch.tensor([1.0, 0.5], dtype=torch.bfloat16))
    assert value(made, "metric") == 0.75


def test_exported_program_brings_its_own_inputs() -> None:
    images = IMAGES.calibration
    program = torch.export.export(small.load(), (images[:2],))
    batches = [images[i : i + 2] for i in range(0, 8, 2)]
    made = advise(program, target="intel-vnni", batch=2, calibration=batches, trials=1, cache=False)
    assert len(made.layers) == 3
    with pytest.raises(InputError, match=r"\(64, 1, 8, 8\)"):
        advise(program, target="intel-vnni", batch=2, calibration=[images[:64]], cache=False)


def test_tied_weights_move_together(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(64, 64)
            self.head = nn.Linear(64, 64, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(self.table(ids))
            return found

    batches = [torch.randint(0, 64, (4, 5)) for _ in range(2)]
    made = advise(Tied(), target="intel-vnni", calibration=batches, trials=1, cache=False)
    moved = made.pin("head", "w8").layers
    assert {(layer.scheme, layer.algorithm) for layer in moved} == {("w8", moved[0].algorithm)}
    assert moved[1].size_bytes == 0


def test_compiled_folder_is_as_open_as_any_other(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    for _ in range(2):
        plan.compile(tmp_path / "build")
    assert (tmp_path / "build").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["build", "plain"]


def test_pin_to_static_keeps_a_dead_channels_bias(tmp_path: Path) -> None:
    class Dead(nn.Module):
        """One channel of next to no weight and a large bias, as folded batch norm leaves them."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, padding=1)
            self.mix = nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.mix(torch.relu(self.conv(x)))
            return found

    torch.manual_seed(0)
    model = Dead().eval()
    assert model.conv.bias is not None
    with torch.no_grad():
        model.conv.weight[2] = 1e-12
        model.conv.bias[2] = 3.0
    images = [torch.randn(8, 1, 6, 6) for _ in range(4)]
    made = advise(
        model, target="intel-vnni", calibration=images, pin={"*": "fp32"}, trials=1, cache=False
    )
    free = advise(model, target="intel-vnni", calibration=images, trials=1, cache=False)
    pinned = free.pin("*", "w8a8")
    assert pinned.compile(tmp_path / "build").verify().ok
    with torch.no_grad():
        moved = (pinned.apply()(images[0]) - made.apply()(images[0])).abs().max()
    assert float(moved) < 0.1


def test_an_energy_budget_holds_where_energies_are_published() -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 64))
    asked: dict[str, Any] = {
        "target": "a100",
        "inputs": torch.randn(64, 256),
        "batch": 64,
        "objective": "accuracy",
        "trials": 1,
        "cache": False,
    }
    model = nn.Sequential(*layers).eval()
    free = advise(model, **asked)
    energies = {each.name: each.metrics.energy_j for each in free.baselines}
    values = {name: each.value for name, each in energies.items() if each is not None}
    assert values["w8a8"] < values["w4-g64"] < values["w8"] < values["fp16"] < values["fp32"]
    limit = values["fp32"] / 2
    made = advise(model, **asked, budget={"energy": limit})
    assert made.predicted.energy_j is not None
    assert made.predicted.energy_j.value <= limit
    assert made.predicted.energy_j.origin == "modelled"
    assert made.energy_parts is not None
    assert made.energy_parts.joules == pytest.approx(made.predicted.energy_j.value)
    assert made.predicted.memory_bytes is not None
    assert made.memory_parts.total_bytes == pytest.approx(made.predicted.memory_bytes.value)
    pinned = free.pin("*", "fp32")
    assert pinned.energy_parts is not None
    assert pinned.energy_parts.joules == pytest.approx(values["fp32"])
    assert len({layer.scheme for layer in made.layers}) > 1
    assert "energy" in made.outcome
