"""Artifacts: schemes, files, read-back, and what a user may do wrong."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from advisor.api import advise
from advisor.errors import MissingDependencyError, PlanError, UnsupportedError, UsageError
from advisor.plan import Plan
from advisor.targets.tensorrt.artifact import TensorrtArtifact
from advisor.targets.tensorrt.engine import Kernel, acceptable_kernels, parse_kernels

SCHEMES = ("fp8", "w8a8", "w8", "w4-g64", "w4-g128", "fp16", "bf16", "fp32")


class Mixed(nn.Module):
    """Images (B, 3, 16, 16) to logits: convolutions with a residual Add, then linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.body = nn.Conv2d(32, 32, 3, padding=1)
        self.narrow = nn.Conv2d(32, 32, 3, padding=1, stride=2)
        self.one = nn.Linear(2048, 256)
        self.two = nn.Linear(256, 256)
        self.three = nn.Linear(256, 256)
        self.four = nn.Linear(256, 256)
        self.five = nn.Linear(256, 10)
        self.side = nn.Linear(2048, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = functional.relu(self.body(x) + x)
        x = functional.relu(self.narrow(x)).flatten(1)
        side = self.side(x)
        for layer in (self.one, self.two, self.three, self.four):
            x = functional.gelu(layer(x))
        logits: Tensor = self.five(x) + side
        return logits


PINS = {
    "stem": "fp16",
    "body": "w8a8",
    "narrow": "bf16",
    "one": "w8a8",
    "two": "w4-g64",
    "three": "w4-g128",
    "four": "w8",
    "five": "fp32",
    "side": "fp8",
}


@pytest.fixture(scope="module")
def plan() -> Plan:
    torch.manual_seed(0)
    batches = [torch.randn(4, 3, 16, 16) for _ in range(4)]
    return advise(
        Mixed().eval(),
        target="l4",
        calibration=batches,
        schemes=list(SCHEMES),
        pin=PINS,
        trials=1,
        cache=False,
    )


@pytest.fixture(scope="module")
def artifact(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> TensorrtArtifact:
    compiled = plan.compile(tmp_path_factory.mktemp("mixed") / "artifact")
    assert isinstance(compiled, TensorrtArtifact)
    return compiled


def copied(artifact: TensorrtArtifact, folder: Path) -> TensorrtArtifact:
    shutil.copytree(artifact.path, folder / "copy")
    return TensorrtArtifact.load(folder / "copy")


def acceptance(artifact: TensorrtArtifact) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((artifact.path / "acceptance.json").read_text())
    return read


def test_every_scheme_of_one_file_is_read_back_from_file_and_kernels(
    artifact: TensorrtArtifact,
) -> None:
    pytest.importorskip("tensorrt_rtx")
    rows = {row["name"]: row for row in acceptance(artifact)["layers"]}
    assert {name: row["scheme"] for name, row in rows.items()} == PINS
    assert {name: row["kernel"] for name, row in rows.items()} == {
        "stem": "float16 weight, float16 input",
        "body": "int8 weight, int8 input",
        "narrow": "bfloat16 weight, bfloat16 input",
        "one": "int8 weight, int8 input",
        "two": "int4 weight, float16 input",
        "three": "int4 weight, float16 input",
        "four": "int8 weight, float16 input",
        "five": "float32 weight, float32 input",
        "side": "float8 weight, float8 input",
    }
    assert acceptance(artifact)["compiled"]["sm"] == "89"


def test_the_file_holds_the_plans_integers(plan: Plan, artifact: TensorrtArtifact) -> None:
    """Against onnx's own reading of the file and ml_dtypes, not this package's."""
    from safetensors.torch import load_file

    tensors = load_file(artifact.path / "plan.safetensors")
    stored = {t.name: t for t in onnx.load(artifact.path / "model.onnx").graph.initializer}
    int4 = numpy_helper.to_array(stored["two.weight_quantized"])
    assert int4.dtype == np.dtype(ml_dtypes.int4)
    np.testing.assert_array_equal(int4.astype(np.int8), tensors["two.weight/values"].numpy())
    scales = numpy_helper.to_array(stored["two.weight_scale"])
    assert scales.dtype == np.float16
    np.testing.assert_array_equal(scales.astype(np.float32), tensors["two.weight/scale"].numpy())
    float8 = numpy_helper.to_array(stored["side.weight_quantized"])
    assert float8.dtype == np.dtype(ml_dtypes.float8_e4m3fn)
    wanted = tensors["side.weight/values"].view(torch.uint8).numpy()
    np.testing.assert_array_equal(float8.view(np.uint8), wanted)
    narrow = numpy_helper.to_array(stored["narrow.weight_bfloat16"])
    wanted = tensors["narrow.weight/values"].view(torch.int16).numpy()
    np.testing.assert_array_equal(narrow.view(np.int16), wanted)
    assert next(layer.scheme for layer in plan.layers if layer.name == "narrow") == "bf16"


def test_a_dynamic_batch_is_in_the_profile(artifact: TensorrtArtifact) -> None:
    ranges = json.loads((artifact.path / "profile.json").read_text())
    assert ranges["x"]["min"] == [1, 3, 16, 16]
    assert ranges["x"]["max"] == [64, 3, 16, 16]
    one, five = (artifact.run(torch.randn(rows, 3, 16, 16)) for rows in (1, 5))
    assert (tuple(one.shape), tuple(five.shape)) == ((1, 10), (5, 10))


def test_a_dynamic_dimension_without_a_range_is_an_error(
    artifact: TensorrtArtifact, tmp_path: Path
) -> None:
    broken = copied(artifact, tmp_path)
    (broken.path / "profile.json").write_text("{}")
    with pytest.raises(PlanError, match=r"no range for input x .* whose batch may change"):
        broken.verify()
    (broken.path / "profile.json").write_text(
        json.dumps({"x": {"min": [2, 3, 16, 16], "opt": [1, 3, 16, 16], "max": [4, 3, 16, 16]}})
    )
    with pytest.raises(PlanError, match="grow from one to the next"):
        broken.verify()
    (broken.path / "profile.json").write_text(json.dumps({"z": {}}))
    with pytest.raises(PlanError, match="no range for input x"):
        broken.verify()


def test_a_weight_behind_the_plans_back_is_found(
    artifact: TensorrtArtifact, tmp_path: Path
) -> None:
    broken = copied(artifact, tmp_path)
    path = broken.path / "model.onnx"
    model = onnx.load(path)
    stored = next(t for t in model.graph.initializer if t.name == "body.weight_quantized")
    changed = numpy_helper.to_array(stored).copy()
    changed[0, 0, 0, 0] ^= 1
    stored.CopyFrom(numpy_helper.from_array(changed, stored.name))
    onnx.save(model, path)
    verification = broken.verify()
    assert not verification.ok
    assert any("an integer or a scale differs" in m.found for m in verification.mismatches)


def test_a_layer_that_is_widened_is_named(artifact: TensorrtArtifact, tmp_path: Path) -> None:
    """QuantizeLinear moved in front of a Relu: the file still looks quantized."""
    pytest.importorskip("tensorrt_rtx")
    broken = copied(artifact, tmp_path)
    path = broken.path / "model.onnx"
    model = onnx.load(path)
    dequantize = next(
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and "body" in _readers(model, node.output[0])
    )
    between = onnx.helper.make_node("Relu", [dequantize.output[0]], ["between"], name="between")
    for node in model.graph.node:
        if node.name == "body":
            node.input[0] = "between"
    at = list(model.graph.node).index(dequantize)
    model.graph.node.insert(at + 1, between)
    onnx.save(model, path)
    verification = broken.verify()
    named = [m for m in verification.mismatches if m.name == "body"]
    assert any("int8 weight, int8 input" in m.expected for m in named)
    assert any(m.expected == "QuantizeLinear behind Relu" for m in named)


def _readers(model: onnx.ModelProto, value: str) -> list[str]:
    return [node.name for node in model.graph.node if value in node.input]


def test_without_the_compiler_acceptance_says_not_compiled(
    artifact: TensorrtArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorrt_rtx" else real(name)
    )
    apart = copied(artifact, tmp_path)
    verification = apart.verify()
    assert verification.ok
    assert "not compiled: tensorrt_rtx is not installed" in verification.notes[0]
    assert 'pip install "quantadvisor[tensorrt]"' in verification.notes[0]
    assert acceptance(apart)["compiled"]["by"] == ""


@pytest.mark.parametrize("keep", [0, 3])
def test_kernels_that_cannot_be_read_fail_by_name(
    artifact: TensorrtArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    """As where another version of the compiler writes its list in other words."""
    pytest.importorskip("tensorrt_rtx")

    def read_some(lines: Sequence[str]) -> tuple[Kernel, ...]:
        return parse_kernels(lines)[:keep]

    monkeypatch.setattr("advisor.targets.tensorrt.compiler.parse_kernels", read_some)
    apart = copied(artifact, tmp_path)
    verification = apart.verify()
    assert not verification.ok
    listed = acceptance(apart)["compiled"]["listed"]
    wanted = f"{keep} of {listed} kernels listed could be read"
    assert verification.notes[0].endswith(wanted)
    lost = {
        m.name for m in verification.mismatches if m.found.endswith("nothing that could be found")
    }
    found = {m.name for m in verification.mismatches if m.found == wanted}
    assert found == {"model.onnx"}
    assert "side" in lost
    if keep == 0:
        assert lost == set(PINS)
        assert verification.layers_matched == 0


class OneRow(nn.Module):
    """Points (N, 3) to one row of numbers: products of few inputs, and of a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Linear(3, 128)
        self.one = nn.Linear(128, 256)
        self.two = nn.Linear(256, 64)
        self.last = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        row = functional.relu(self.points(x)).mean(0, keepdim=True)
        row = functional.relu(self.two(functional.relu(self.one(row))))
        scored: Tensor = self.last(row)
        return scored


@pytest.mark.parametrize("scheme", ["fp16", "bf16", "w8", "w4-g64", "w8a8", "fp8", ""])
def test_products_of_one_row_are_compiled_in_every_scheme(scheme: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    torch.manual_seed(0)
    narrow = scheme if scheme in ("fp16", "bf16") else "fp16"
    pins = {"one": scheme, "two": scheme, "points": narrow, "last": narrow} if scheme else {}
    made = advise(
        OneRow().eval(),
        target="l4",
        inputs=torch.randn(8, 3),
        batch=8,
        pin=pins,
        trials=1,
        cache=False,
    )
    compiled = made.compile(tmp_path / "out")
    assert isinstance(compiled, TensorrtArtifact)
    rows = {row["name"]: row for row in acceptance(compiled)["layers"]}
    for layer in made.layers:
        assert {rows[layer.name]["kernel"]} == acceptable_kernels(
            next(each for each in compiled.manifest.layers if each.name == layer.name)
        )
        if scheme and layer.name in ("one", "two"):
            assert layer.scheme == scheme


class Small(nn.Module):
    """Images (B, 3, 8, 8) to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.one = nn.Linear(1024, 32)
        self.two = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu(self.conv(x)).flatten(1)
        logits: Tensor = self.two(functional.relu(self.one(hidden)))
        return logits


@pytest.mark.parametrize(("last", "sm"), [("fp32", "80"), ("fp16", "75")])
def test_a_t4_is_checked_as_far_as_the_compiler_can(last: str, sm: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    torch.manual_seed(0)
    made = advise(
        Small().eval(),
        target="t4",
        inputs=torch.randn(4, 3, 8, 8),
        pin={"conv": "fp32", "one": "fp16", "two": last},
        trials=1,
        cache=False,
    )
    compiled = made.compile(tmp_path / "out")
    assert isinstance(compiled, TensorrtArtifact)
    verification = compiled.verify()
    assert verification.ok
    found = acceptance(compiled)
    names = {"fp32": "float32 weight, float32 input", "fp16": "float16 weight, float16 input"}
    assert {row["name"]: row["kernel"] for row in found["layers"]} == {
        "conv": names["fp32"],
        "one": names["fp16"],
        "two": names[last],
    }
    assert (found["compiled"]["sm"], found["compiled"]["stands_for"]) == (sm, "75")
    is_gap = "no kernel of sm75 was seen" in found["compiled"]["reason"]
    assert is_gap == (last == "fp32")
    assert found["compiled"]["note"] == verification.notes[0]
    assert ("no kernel of sm75 was seen" in verification.notes[0]) == is_gap


def test_the_shipped_script_builds_what_was_checked(
    artifact: TensorrtArtifact, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    folder = copied(artifact, tmp_path).path
    command = [sys.executable, str(folder / "build_engine.py"), "--backend", "rtx", "--sm", "120"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (folder / "model.engine").stat().st_size > 0
    assert json.loads((folder / "layers.json").read_text())
    (folder / "profile.json").unlink()
    refused = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert refused.returncode == 2
    assert "input x [-1, 3, 16, 16] has dynamic dimensions [0] but no range" in refused.stderr


def test_trtexec_gets_the_shapes(artifact: TensorrtArtifact) -> None:
    text = (artifact.path / "trtexec.sh").read_text()
    assert "--minShapes=x:1x3x16x16" in text
    assert "--exportLayerInfo=layers.json" in text
    assert "--noTF32" not in text


def test_options_that_do_not_exist_are_refused(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"option sm='72' of tensorrt: possible are"):
        plan.compile(tmp_path / "out", options={"sm": "72"})


@pytest.mark.parametrize(("target", "sm"), [("v100", "sm70"), ("p100", "sm60")])
def test_gpus_that_tensorrt_dropped_are_planned_for_and_not_compiled_for(
    target: str, sm: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    made = advise(model, target=target, inputs=torch.randn(2, 64), trials=1, cache=False)
    lacks = f"TensorRT 11 needs sm75, the profile has {sm} (removed for sm70 in TensorRT 10.5"
    for plan in (made, made.pin("0", "fp16")):
        (note,) = (note for note in plan.notes if "cannot be compiled" in note)
        assert lacks in note
        with pytest.raises(UnsupportedError) as caught:
            plan.compile(tmp_path / "out")
        assert str(caught.value).startswith(f"the plan for {target} cannot be compiled: {lacks}")
        assert "advise(..., runtime=...)" in str(caught.value)
        assert not (tmp_path / "out").exists()
    assert torch.equal(made.apply()(torch.ones(1, 64)), model(torch.ones(1, 64)))


def test_a_scheme_that_the_capability_lacks_is_refused_with_its_reason() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 7)).eval()
    made = advise(model, target="t4", inputs=torch.randn(2, 64), trials=1, cache=False)
    reasons = {o.scheme: o.reason for o in made.layers[0].options}
    assert "needs sm80, the profile has sm75" in reasons["w8a8"]
    made = advise(model, target="l4", inputs=torch.randn(2, 64), trials=1, cache=False)
    first, last = ({o.scheme: o.reason for o in layer.options} for layer in made.layers)
    assert "2 blocks or more, and 64 inputs have 1" in first["w4-g64"]
    assert "multiples of 2, and these are 7 and 64" in last["w8"]


def test_one_file_is_checked_for_other_gpus(artifact: TensorrtArtifact) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert artifact.mismatches_on("120") == []
    found = artifact.mismatches_on("86")
    assert {m.expected for m in found if m.name == "side"} >= {"sm89 or newer for float8e4m3fn"}
    assert any("fp8" in m.found for m in found if m.name == "model.onnx")


def test_timing_needs_a_gpu_and_says_how(artifact: TensorrtArtifact) -> None:
    with pytest.raises(MissingDependencyError, match="--dumpProfile"):
        artifact.benchmark()


def test_debug_names_the_worst_layer(artifact: TensorrtArtifact) -> None:
    assert "all 9 layers agree with the simulation" in artifact.debug()
