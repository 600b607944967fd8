"""What TensorRT widens or refuses, put in the place of an artifact's own file."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from advisor.api import advise
from advisor.errors import PlanError
from advisor.targets.base import Verification
from advisor.targets.onnxruntime.onnxfile import load_model
from advisor.targets.tensorrt.artifact import TensorrtArtifact
from advisor.targets.tensorrt.lint import lint
from tests.targets.tensorrt.rejected import REJECTED
from tests.targets.tensorrt.silent import SILENT
from tests.targets.tensorrt.sketch import OUTPUTS, ROWS, WIDTH

pytest.importorskip("tensorrt_rtx")


class One(nn.Module):
    """The layer that the sketches have."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> TensorrtArtifact:
    """One int8 layer, for sm89."""
    torch.manual_seed(0)
    plan = advise(
        One().eval(),
        target="l4",
        calibration=[torch.randn(ROWS, WIDTH) for _ in range(2)],
        pin={"layer": "w8a8"},
        trials=1,
        cache=False,
    )
    compiled = plan.compile(tmp_path_factory.mktemp("one") / "artifact")
    assert isinstance(compiled, TensorrtArtifact)
    assert compiled.verify().ok
    return compiled


def verify_with(artifact: TensorrtArtifact, model: onnx.ModelProto, folder: Path) -> Verification:
    return put_in(artifact, model, folder).verify()


def put_in(artifact: TensorrtArtifact, model: onnx.ModelProto, folder: Path) -> TensorrtArtifact:
    """A copy whose file is ``model``, for any batch and with the artifact's own output."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    (output,) = artifact.manifest.outputs
    model.graph.output[0].name = model.graph.node[-1].output[0] = output.name
    shutil.copytree(artifact.path, folder / "copy")
    onnx.save(model, folder / "copy" / "model.onnx")
    return TensorrtArtifact.load(folder / "copy")


WIDENED = (
    "Relu behind DequantizeLinear",
    "dynamic int8 scale",
    "float weight of a quantized input",
)


@pytest.mark.parametrize("name", WIDENED)
def test_verify_names_the_layer_that_is_widened(
    name: str, artifact: TensorrtArtifact, tmp_path: Path
) -> None:
    build, sm = SILENT[name]
    assert sm == artifact.options.sm
    found = verify_with(artifact, build(), tmp_path)
    assert not found.ok
    (kernel,) = (m for m in found.mismatches if m.expected == "executed by int8 weight, int8 input")
    assert kernel.name == "layer"
    assert "float" in kernel.found
    rules = {each.rule for each in lint(load_model(tmp_path / "copy" / "model.onnx"), sm=sm)}
    assert rules <= {m.expected for m in found.mismatches}
    assert found.layers_matched == 0


REFUSED = (
    "zero point other than 0",
    "uint8 activations",
    "int32 bias behind DequantizeLinear",
    "QLinearMatMul",
    "MatMulInteger",
)


@pytest.mark.parametrize("name", REFUSED)
def test_verify_says_what_the_compiler_refuses(
    name: str, artifact: TensorrtArtifact, tmp_path: Path
) -> None:
    build, sm = REJECTED[name]
    assert sm == artifact.options.sm
    found = verify_with(artifact, build(), tmp_path)
    assert not found.ok
    assert found.notes[0].endswith("for sm89: refused")
    assert [m.name for m in found.mismatches if m.expected.startswith("accepted by TensorRT-RTX")]
    rules = {each.rule for each in lint(load_model(tmp_path / "copy" / "model.onnx"), sm=sm)}
    assert rules
    assert rules <= {m.expected for m in found.mismatches}


@pytest.mark.parametrize("name", ["zero point other than 0", "MatMulInteger"])
def test_a_file_without_an_engine_is_not_run_on_the_gpu(
    name: str, artifact: TensorrtArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building needs no GPU, so only the question whether there is one is answered here."""
    monkeypatch.setattr("advisor.targets.tensorrt.artifact.find_backend", lambda: "rtx")
    broken = put_in(artifact, REJECTED[name][0](), tmp_path)
    with pytest.raises(PlanError, match=r"^tensorrt_rtx built no engine: \S"):
        broken.check_on_gpu()
    assert not (broken.path / "gpu.json").exists()
