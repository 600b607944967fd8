"""NVFP4 for sm120: written, compiled, read back, and refused where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from advisor.api import advise
from advisor.plan import Plan
from advisor.targets.tensorrt.artifact import TensorrtArtifact
from tests.graph.test_float4 import in_blocks


def planned(target: str) -> Plan:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 64), nn.GELU()).eval()
    return advise(
        model,
        target=target,
        calibration=[torch.randn(4, 3, 64) for _ in range(2)],
        pin={"0": "nvfp4", "2": "fp32"} if target == "rtx-5090" else None,
        trials=1,
        cache=False,
    )


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> TensorrtArtifact:
    compiled = planned("rtx-5090").compile(tmp_path_factory.mktemp("float4") / "artifact")
    assert isinstance(compiled, TensorrtArtifact)
    return compiled


def test_the_kernel_multiplies_four_bit_floats(artifact: TensorrtArtifact) -> None:
    pytest.importorskip("tensorrt_rtx")
    read = json.loads((artifact.path / "acceptance.json").read_text())
    first = next(row for row in read["layers"] if row["name"] == "0")
    assert (first["scheme"], first["kernel"]) == ("nvfp4", "float4 weight, float4 input")
    assert read["compiled"]["sm"] == "120"


def test_the_file_computes_what_numpy_does(artifact: TensorrtArtifact) -> None:
    """The first layer from the file's own constants, read by onnx and ml_dtypes."""
    model = onnx.load(artifact.path / "model.onnx")
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    numbers, codes = held["0.weight_quantized"], held["0.weight_scale"]
    assert numbers.dtype == np.dtype(ml_dtypes.float4_e2m1fn)
    assert codes.dtype == np.dtype(ml_dtypes.float8_e4m3fn)
    scales = codes.astype(np.float32) * held["0.weight_unit"]
    weight = numbers.astype(np.float32) * np.repeat(scales, 16, axis=1)
    x = np.random.default_rng(0).normal(size=(2, 3, 64)).astype(np.float32)
    read = in_blocks(x, float(held["advisor.float4_unit"]))
    wanted = read.astype(np.float64) @ weight.T.astype(np.float64) + held["0.bias"]
    found = artifact.run(x)
    second = nn.Linear(48, 64)
    with torch.no_grad():
        second.weight.copy_(torch.tensor(held["2.weight"]))
        second.bias.copy_(torch.tensor(held["2.bias"]))
        gelu = nn.functional.gelu
        expected = gelu(second(gelu(torch.as_tensor(wanted.astype(np.float32)))))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_it_is_refused_where_the_gpu_has_none() -> None:
    reasons = {o.scheme: o.reason for o in planned("l4").layers[0].options}
    assert "needs sm100, the profile has sm89" in reasons["nvfp4"]


def test_four_dimensions_are_multiplied_in_four_bits_too(tmp_path: Path) -> None:
    """TensorRT's quantizer refuses them, and a product of them would run in float32."""
    pytest.importorskip("tensorrt_rtx")
    torch.manual_seed(0)
    plan = advise(
        nn.Sequential(nn.Linear(64, 48), nn.GELU()).eval(),
        target="rtx-5090",
        calibration=[torch.randn(4, 3, 5, 64) for _ in range(2)],
        pin={"0": "nvfp4"},
        trials=1,
        cache=False,
    )
    artifact = plan.compile(tmp_path)
    kernels = {row["name"]: row["kernel"] for row in acceptance(tmp_path)["layers"]}
    assert kernels == {"0": "float4 weight, float4 input"}
    assert artifact.run(torch.randn(2, 3, 5, 64)).shape == (2, 3, 5, 48)


def acceptance(folder: Path) -> Any:
    return json.loads((folder / "acceptance.json").read_text())
