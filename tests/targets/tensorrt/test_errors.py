"""What a user may lack, ask for or damage, and what is said."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from advisor.api import advise
from advisor.errors import MissingDependencyError, PlanError, UnsupportedError
from advisor.plan import Plan
from advisor.targets.tensorrt.artifact import TensorrtArtifact


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()


@pytest.fixture(scope="module")
def plan() -> Plan:
    return advise(model(), target="l4", inputs=torch.randn(2, 64), trials=1, cache=False)


@pytest.fixture(scope="module")
def artifact(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> TensorrtArtifact:
    compiled = plan.compile(tmp_path_factory.mktemp("errors") / "artifact")
    assert isinstance(compiled, TensorrtArtifact)
    return compiled


@pytest.fixture
def copied(artifact: TensorrtArtifact, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact.path, tmp_path / "copy"))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnx_ir", "onnxscript"])
def test_compiling_without_a_package_names_it_and_writes_nothing(
    package: str, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def without(name: str, parent: str | None = None) -> object:
        return None if name == package else find(name, parent)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(MissingDependencyError) as caught:
        plan.compile(tmp_path / "out")
    said = (
        f'the TensorRT target needs {package}, not installed here; run: pip install "quantadvisor'
    )
    assert said in str(caught.value)
    assert "[tensorrt]" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "scheme", "reason"),
    [
        ("t4", "w8a8", "w8a8 needs sm80, the profile has sm75"),
        ("a100", "fp8", "fp8 needs sm89, the profile has sm80"),
        ("l4", "nvfp4", "nvfp4 needs sm100, the profile has sm89"),
        ("l4", "w4-g64", "only with 2 blocks or more, and 64 inputs have 1"),
        ("l4", "w4-g32", "TensorRT takes int4 blocks of 64 or 128 only"),
        ("l4", "w8a8-dynamic", "runs them in high precision: ask for w8a8"),
        ("l4", "ternary", "TensorRT has no ternary"),
    ],
)
def test_pinning_what_the_gpu_or_the_runtime_lacks_gives_the_reason(
    target: str, scheme: str, reason: str
) -> None:
    with pytest.raises(UnsupportedError, match="layer 0 cannot be pinned to") as caught:
        advise(
            model(),
            target=target,
            inputs=torch.randn(2, 64),
            pin={"0": scheme},
            trials=1,
            cache=False,
        )
    assert reason in str(caught.value)
    assert "possible here: " in str(caught.value)


def test_a_range_of_an_unknown_input_is_refused_beside_a_good_one(copied: Path) -> None:
    path = copied / "profile.json"
    ranges = json.loads(path.read_text())
    path.write_text(json.dumps({**ranges, "pixels": next(iter(ranges.values()))}))
    (name,) = ranges
    broken = TensorrtArtifact.load(copied)
    with pytest.raises(PlanError, match=f"has no input 'pixels'; it has {name}"):
        broken.verify()


def test_profile_json_that_is_no_json_is_refused(copied: Path) -> None:
    (copied / "profile.json").write_text("{")
    with pytest.raises(PlanError, match=r"profile\.json cannot be read .*compile the plan again"):
        TensorrtArtifact.load(copied).verify()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "Expecting property name"),
        ("[]", "must be a mapping"),
        ('{"sm": "89", "speed": "high"}', "unexpected keyword argument 'speed'"),
        ('{"sm": "72"}', "option sm='72' of tensorrt: possible are"),
        ('{"tf32": true}', "option tf32=True of tensorrt: possible are on, off"),
    ],
)
def test_damaged_options_are_refused(text: str, problem: str, copied: Path) -> None:
    (copied / "options.json").write_text(text)
    with pytest.raises(PlanError, match="compile the plan again") as caught:
        TensorrtArtifact.load(copied)
    assert problem in str(caught.value)
    (copied / "options.json").unlink()
    with pytest.raises(PlanError, match=r"options\.json cannot be read"):
        TensorrtArtifact.load(copied)
