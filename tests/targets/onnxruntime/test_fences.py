"""Float layers between integers stay float, whatever ONNX Runtime would make of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from advisor import Plan, advise
from advisor.errors import VerificationError
from advisor.targets.base import Artifact
from advisor.targets.onnxruntime.artifact import OnnxRuntimeArtifact
from advisor.targets.onnxruntime.kernels import INTEGER

FLOAT = {"Conv", "ConvTranspose", "FusedConv", "FusedGemm", "MatMul"}
WIDTH = 32
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "clip": nn.ReLU6,
}


class Rows(nn.Module):
    """Pictures as rows of channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class Between(nn.Module):
    """A layer between two others, whose channels are a thousand times apart.

    One scale for all of them, as ONNX Runtime would have it, leaves nothing of the small ones.
    """

    def __init__(self, kind: str, activation: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDTH, 3, padding=1)
        flat = {"linear": nn.Flatten(), "rows": Rows()}
        self.flat = flat.get(kind, nn.Identity())
        middle: dict[str, nn.Conv2d | nn.ConvTranspose2d | nn.Linear] = {
            "conv": nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            "transposed": nn.ConvTranspose2d(WIDTH, WIDTH, 2, stride=2),
            "linear": nn.Linear(16 * WIDTH, WIDTH),
            "rows": nn.Linear(WIDTH, WIDTH),
        }
        self.middle = middle[kind]
        self.activation = ACTIVATIONS[activation]()
        self.last = nn.Linear(WIDTH, 4) if kind in flat else nn.Conv2d(WIDTH, 4, 1)
        with torch.no_grad():
            channels = 1 if kind == "transposed" else 0
            sizes = torch.logspace(-3, 0, WIDTH).view(
                [-1 if i == channels else 1 for i in range(2)]
            )
            weight = self.middle.weight
            weight.mul_(sizes.view(*sizes.shape, *[1] * (weight.dim() - 2)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.flat(torch.relu(self.first(x)))
        found: Tensor = self.last(self.activation(self.middle(x)))
        return found


def plan_of(kind: str, activation: str, scheme: str = "fp32") -> Plan:
    """The middle under the scheme, the others in integers."""
    plan = any_plan(kind, activation)
    return plan.pin("first", "w8a8").pin("last", "w8a8").pin("middle", scheme)


@cache
def any_plan(kind: str, activation: str) -> Plan:
    torch.manual_seed(0)
    return advise(
        Between(kind, activation).eval(),
        target="intel-vnni",
        calibration=[torch.randn(4, 3, 4, 4) for _ in range(2)],
        schemes=["w8a8", "w8", "w4-g32", "fp16"],
        trials=1,
        cache=False,
    )


@pytest.mark.parametrize(
    ("kind", "activation"),
    [
        ("conv", "none"),
        ("conv", "relu"),
        ("conv", "clip"),
        ("transposed", "none"),
        ("linear", "none"),
        ("linear", "relu"),
        ("rows", "none"),
        ("rows", "relu"),
    ],
)
def test_a_float_layer_between_integers_is_computed_in_float(
    kind: str, activation: str, tmp_path: Path
) -> None:
    artifact = plan_of(kind, activation).compile(tmp_path / "build")
    assert isinstance(artifact, OnnxRuntimeArtifact)
    assert artifact.verify().ok
    formats = artifact.read_back()
    assert formats["first"].kernel in INTEGER
    assert formats["middle"].kernel in FLOAT


def optimized(artifact: Artifact, folder: Path, batch: int | None = None) -> list[str]:
    """Operators of the file as a user opens it, whose batch is open or fixed."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    if batch is not None:
        options.add_free_dimension_override_by_name("batch", batch)
    ort.InferenceSession(str(artifact.path / "model.onnx"), options)
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


def test_the_fence_costs_no_operator_of_its_own(tmp_path: Path) -> None:
    kinds = optimized(plan_of("conv", "relu").compile(tmp_path / "build"), tmp_path)
    assert kinds.count("Conv") == 1
    assert "LeakyRelu" not in kinds


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_rows_stay_float_where_sizes_are_fixed(activation: str, tmp_path: Path) -> None:
    """ONNX Runtime makes a Gemm of them then."""
    artifact = plan_of("rows", activation).compile(tmp_path / "build")
    assert "QGemm" not in optimized(artifact, tmp_path, batch=1)


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "w8", "w4-g32"])
def test_narrow_weights_are_fenced_too(scheme: str, tmp_path: Path) -> None:
    """They are floats by the time that ONNX Runtime looks for weights to round."""
    artifact = plan_of("conv", "none", scheme).compile(tmp_path / "build")
    assert isinstance(artifact, OnnxRuntimeArtifact)
    assert artifact.read_back()["middle"].kernel in FLOAT


@pytest.mark.parametrize(
    ("kind", "where"),
    [("conv", ""), ("transposed", ""), ("linear", ""), ("rows", "where sizes are fixed")],
)
def test_a_rounded_layer_is_found_by_name(
    kind: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "advisor.targets.onnxruntime.export.fence_floats", lambda _model, _counter: None
    )
    with pytest.raises(
        VerificationError, match=rf"middle[^\n]*fp32, computed in float[^\n]*{where}"
    ):
        plan_of(kind, "none").compile(tmp_path / "build")
