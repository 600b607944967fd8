"""Every way to hold it wrong: a clear error that says what to do, and nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from advisor import Plan, advise
from advisor.errors import (
    AdvisorError,
    BudgetError,
    CalibrationError,
    CaptureError,
    InfeasibleError,
    InputError,
    MissingEmitterError,
    ModelError,
    OutputError,
    PlanError,
    ProfileError,
    UnsupportedError,
    UsageError,
)
from tests.system import small
from tests.system.small import IMAGES, plan_small


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_small()


@pytest.fixture
def saved(plan: Plan, tmp_path: Path) -> Path:
    return plan.save(tmp_path / "saved" / "plan.json")


class Forever:
    """Calibration that must not be read."""

    def __iter__(self) -> Any:
        raise AssertionError("calibration was read before the budget was checked")


def test_unknown_target_names_the_nearest() -> None:
    with pytest.raises(ProfileError, match=r"intel-vni.*intel-vnni"):
        plan_small(target="intel-vni")


def test_unknown_runtime_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="onnxruntime"):
        plan_small(runtime="onnxruntim")


@pytest.mark.parametrize(
    "budget", ["4 parsecs", "-4GB", "0MB", "nanMB", "4Gb", {"memroy": "4GB"}, "4GB,5GB", 7, ""]
)
def test_malformed_budget(budget: Any) -> None:
    with pytest.raises(BudgetError):
        plan_small(budget=budget, calibration=Forever())


@pytest.mark.parametrize("budget", ["size=1kB", "0.01us", "memory=1kB"])
def test_infeasible_budget_is_refused_before_calibration(budget: str) -> None:
    with pytest.raises(InfeasibleError, match="smallest") as caught:
        plan_small(budget=budget, inputs=IMAGES.test[:1], calibration=Forever())
    assert caught.value.exit_code == 3


def test_smallest_feasible_value_named_is_feasible() -> None:
    with pytest.raises(InfeasibleError) as caught:
        plan_small(budget={"size": 1000}, inputs=IMAGES.test[:1], calibration=Forever())
    import re

    found = re.search(r"([\d.]+) KB", str(caught.value).split("smallest", 1)[1])
    assert found is not None
    smallest = float(found.group(1)) * 1000
    made = plan_small(budget={"size": smallest * 1.001})
    assert made.predicted.size_bytes is not None
    assert made.predicted.size_bytes.value <= smallest * 1.001
    with pytest.raises(InfeasibleError):
        plan_small(budget={"size": smallest * 0.98})


def test_inputs_that_cannot_be_inferred() -> None:
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.weight) * mask

    with pytest.raises(InputError, match="inputs="):
        advise(Opaque(), target="intel-vnni")


def test_wrong_shape() -> None:
    with pytest.raises(InputError, match="does not run"):
        plan_small(inputs=torch.zeros(2, 3, 8, 8))


def test_calibration_of_another_shape_or_dtype() -> None:
    good = IMAGES.calibration[:8]
    with pytest.raises(InputError, match="shape"):
        plan_small(inputs=good, calibration=[good, torch.zeros(8, 1, 9, 9)])
    with pytest.raises(InputError, match="int64"):
        plan_small(inputs=good, calibration=[good, torch.zeros(8, 1, 8, 8, dtype=torch.int64)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bad: float) -> None:
    model = small.load()
    with torch.no_grad():
        model.head.weight[3, 5] = bad
    with pytest.raises(ModelError, match=r"head\.weight"):
        plan_small(model=model)


def test_calibration_that_is_not_finite() -> None:
    broken = IMAGES.calibration[:8].clone()
    broken[2, 0, 1, 1] = float("nan")
    with pytest.raises(CalibrationError, match="batch 1"):
        plan_small(calibration=[IMAGES.calibration[:8], broken])


def test_empty_calibration() -> None:
    with pytest.raises(CalibrationError, match="empty"):
        plan_small(calibration=[])
    with pytest.raises(CalibrationError, match="empty"):
        plan_small(inputs=IMAGES.test[:1], calibration=iter(()))
    with pytest.raises(CalibrationError, match="iterable of batches"):
        plan_small(calibration=IMAGES.calibration[:8])


def test_data_dependent_control_flow_names_module_and_line() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.linear(x)
            if y.sum() > 0:
                return y
            return -y

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = Gate()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.gate(x)
            return found

    with pytest.raises(
        CaptureError, match=r"module 'gate' at test_bad_input\.py:\d+.*torch\.where"
    ):
        advise(Outer(), target="intel-vnni", inputs=torch.randn(2, 4))


def test_unsupported_operator_is_kept_in_float_with_a_reason() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(8, 16, batch_first=True)
            self.head = nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(self.rnn(x)[0])
            return found

    made = advise(Tagger(), target="intel-vnni", inputs=torch.randn(2, 5, 8), trials=1, cache=False)
    kept = [layer for layer in made.layers if layer.op == "rnn_tanh"]
    assert kept
    assert all(layer.scheme == "fp32" and "rnn_tanh" in layer.reason for layer in kept)
    with pytest.raises(UnsupportedError, match="on_unsupported"):
        advise(Tagger(), target="intel-vnni", inputs=torch.randn(2, 5, 8), on_unsupported="error")


def test_model_without_a_quantizable_layer() -> None:
    with pytest.raises(ModelError, match="no layer to quantize"):
        advise(nn.ReLU(), target="intel-vnni", inputs=torch.randn(2, 4))


def test_pin_of_nothing_and_of_the_impossible() -> None:
    with pytest.raises(UsageError, match="head"):
        plan_small(pin={"haed": "fp16"})
    with pytest.raises(UsageError, match="unknown scheme"):
        plan_small(pin={"head": "w5"})
    with pytest.raises(UnsupportedError, match="possible here"):
        plan_small(pin={"stem.conv": "w4-g32"})


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "speed"},
        {"schemes": ["w9"]},
        {"schemes": ["fp8"]},
        {"batch": 0},
        {"trials": 0},
        {"threads": -1},
        {"workers": 3},
        {"context": 2048},
        {"context": 0},
        {"on_unsupported": "skip"},
        {"output": "logit"},
        {"output": {"nothing": "logits"}},
        {"budget": {"accuracy_drop": 0.01}},
    ],
)
def test_argument_that_cannot_be_used(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        plan_small(**options)


def test_not_a_model() -> None:
    with pytest.raises(UsageError, match=r"nn\.Module"):
        advise(42, target="intel-vnni")


@pytest.mark.parametrize("result", [float("nan"), "good", [], [1.0, float("inf")]])
def test_metric_that_is_no_number(result: Any) -> None:
    with pytest.raises(UsageError, match="metric returned"):
        plan_small(metric=lambda _: result)


@pytest.mark.parametrize("result", [None, "low", [0.1, 0.2], torch.zeros(3)])
def test_loss_that_is_no_number(result: Any) -> None:
    with pytest.raises(UsageError, match=r"loss returned \w+, which is no single number"):
        plan_small(loss=lambda _outputs, _reference: result)


def test_metric_or_loss_that_raises_is_named_and_kept_as_the_cause() -> None:
    def fail(*_: Any) -> float:
        raise ZeroDivisionError("no labels")

    with pytest.raises(UsageError, match="metric raised ZeroDivisionError: no labels") as found:
        plan_small(metric=fail)
    assert isinstance(found.value.__cause__, ZeroDivisionError)
    with pytest.raises(UsageError, match="loss raised ZeroDivisionError: no labels") as found:
        plan_small(loss=fail)
    assert isinstance(found.value.__cause__, ZeroDivisionError)


def test_plan_of_another_model(saved: Path) -> None:
    other = small.load()
    with torch.no_grad():
        other.head.weight[0, 0] += 1e-3
    with pytest.raises(PlanError, match="another model"):
        Plan.load(saved, model=other)
    with pytest.raises(PlanError, match="model="):
        Plan.load(saved).apply()


def test_corrupted_plan(saved: Path) -> None:
    text = saved.read_text()
    saved.write_text(text[: len(text) // 2])
    with pytest.raises(PlanError, match="JSON"):
        Plan.load(saved)
    document = json.loads(text)
    document["layers"][1]["scheme"] = "w5"
    saved.write_text(json.dumps(document))
    with pytest.raises(PlanError, match=r"layers\[1\]\.scheme"):
        Plan.load(saved)


def test_plan_of_a_newer_schema(saved: Path) -> None:
    document = json.loads(saved.read_text())
    document["schema"] = 99
    saved.write_text(json.dumps(document))
    with pytest.raises(PlanError, match=r"99.*(newer|update)"):
        Plan.load(saved)


def test_missing_or_altered_tensors(saved: Path) -> None:
    tensors = saved.with_suffix(".safetensors")
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(PlanError, match="SHA-256"):
        Plan.load(saved, model=small.load())
    tensors.unlink()
    with pytest.raises(PlanError, match="missing"):
        Plan.load(saved, model=small.load())


def test_unwritable_folder(plan: Plan, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    for write in (
        lambda: plan.save(blocker / "plan.json"),
        lambda: plan.report(blocker / "report.md"),
        lambda: plan.compile(blocker / "build"),
    ):
        with pytest.raises(OutputError):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_compile_does_not_replace_a_folder_that_is_not_its_own(plan: Plan, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(OutputError, match="not written by compile"):
        plan.compile(mine)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (mine / "thesis.tex").read_text() == "irreplaceable"


def test_report_of_an_unknown_kind(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.md"):
        plan.report(tmp_path / "report.docx")
    assert not list(tmp_path.iterdir())


def test_runtime_without_an_emitter(tmp_path: Path) -> None:
    made = plan_small(target="tpu-v5e", budget="4GB")
    with pytest.raises(MissingEmitterError, match=r"XLA.*: coreai, coreml, onnx") as caught:
        made.compile(tmp_path / "build")
    assert caught.value.exit_code == 4
    assert not list(tmp_path.iterdir())


def test_missing_runtime(plan: Plan, tmp_path: Path, root: Path) -> None:
    plan.save(tmp_path / "plan.json")
    script = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from advisor import Plan\n"
        "from tests.system import small\n"
        f"plan = Plan.load({str(tmp_path / 'plan.json')!r}, model=small.load())\n"
        f"plan.compile({str(tmp_path / 'build')!r})\n"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 1
    assert "MissingDependencyError" in done.stderr
    assert "quantadvisor[onnxruntime]" in done.stderr
    assert not (tmp_path / "build").exists()


def test_every_error_is_one_of_ours() -> None:
    assert issubclass(UsageError, AdvisorError)
    assert issubclass(UsageError, ValueError)
    assert issubclass(InfeasibleError, AdvisorError)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"calibration": 5}, "iterable of batches"),
        ({"calibration": lambda: []}, "called, not the function"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": "x"}, "whole number"),
        ({"trials": 2.5}, "trials=2.5"),
        ({"batch": True}, "batch=True"),
        ({"pin": ["head"]}, "mapping"),
        ({"schemes": "w8a8"}, r"\['w8a8'\]"),
        ({"target": None}, "intel-vnni"),
        ({"output": 5}, "logits"),
        ({"metric": lambda _: None}, "nothing"),
    ],
)
def test_argument_of_the_wrong_kind(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan_small(**options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_model_that_is_not_float32(dtype: torch.dtype) -> None:
    with pytest.raises(ModelError, match=r"stem\.conv\.weight is .*model\.float\(\)"):
        plan_small(model=small.load().to(dtype))


def test_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(UsageError, match="inference_mode"):
        plan_small()


def test_model_changed_after_the_plan(tmp_path: Path) -> None:
    model = small.load()
    made = plan_small(model=model, pin={"head": "fp32"})
    made.apply()
    with torch.no_grad():
        model.head.weight.mul_(2.0)
    for use in (made.apply, lambda: made.compile(tmp_path / "build")):
        with pytest.raises(PlanError, match="changed after the plan"):
            use()
    assert not list(tmp_path.iterdir())


def test_model_that_differs_in_a_keyword_only(tmp_path: Path) -> None:
    class Gelu(nn.Module):
        def __init__(self, approximate: str) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(32, 4)
            self.approximate = approximate

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.gelu(self.linear(x), approximate=self.approximate)

    batches = [torch.randn(4, 32) for _ in range(2)]
    made = plan_small(model=Gelu("none"), calibration=batches)
    saved = made.save(tmp_path / "plan.json")
    assert Plan.load(saved, model=Gelu("none")).fingerprint == made.fingerprint
    with pytest.raises(PlanError, match="another model"):
        Plan.load(saved, model=Gelu("tanh"))


def test_on_unsupported_error_speaks_of_the_runtime_too() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(4, 8, 3)
            self.head = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(self.conv(x))
            return found

    options: dict[str, Any] = {
        "target": "arm-neon",
        "calibration": [torch.randn(4, 4, 8)],
        "schemes": ["w4a8-dynamic"],
    }
    kept = {layer.name: layer for layer in plan_small(model=Mixed(), **options).layers}["conv"]
    assert kept.scheme == "fp32"
    assert "only on" in kept.reason
    with pytest.raises(UnsupportedError, match="1 of 2 layers"):
        plan_small(model=Mixed(), on_unsupported="error", **options)


def test_pin_on_a_profile_that_has_no_name_here(tmp_path: Path) -> None:
    from advisor import profiles

    shipped = (Path(profiles.__file__).parent / "intel-vnni.toml").read_text()
    mine = tmp_path / "mine.toml"
    mine.write_text(shipped.replace('name = "intel-vnni"', 'name = "mine"'))
    made = plan_small(target=str(mine))
    with pytest.raises(PlanError, match="'mine'"):
        made.pin("head", "w8")


def test_loaded_plan_can_be_saved_elsewhere_without_its_model(saved: Path, tmp_path: Path) -> None:
    copy = Plan.load(saved).save(tmp_path / "copy")
    assert copy.read_bytes() == saved.read_bytes()
    assert copy.with_suffix(".safetensors").read_bytes() == (
        saved.with_suffix(".safetensors").read_bytes()
    )


def test_cache_folder_that_cannot_be_written_is_found_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    monkeypatch.setenv("ADVISOR_CACHE", str(blocker))
    with pytest.raises(OutputError, match="cache=False"):
        plan_small(cache=True, calibration=Forever())


def test_factory_that_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_factory.py").write_text("def build():\n    return {}['weights']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=r"KeyError.*broken_factory\.py:2"):
        advise("broken_factory:build", target="intel-vnni")
