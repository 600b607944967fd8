"""Running engines: what can be said of it without a GPU."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from advisor.api import advise
from advisor.errors import MissingDependencyError
from advisor.targets.manifest import LayerRecord
from advisor.targets.tensorrt import build_engine, device
from advisor.targets.tensorrt.artifact import TensorrtArtifact

trt: Any = pytest.importorskip("tensorrt_rtx")


def layer(name: str, node: str) -> LayerRecord:
    return LayerRecord(
        name=name,
        op="linear",
        scheme="fp16",
        node=node,
        weight="",
        weight_shape=(4, 4),
        weight_sha256="",
    )


def test_kernels_are_named_after_the_layers_in_them() -> None:
    described = {
        "Layers": [
            {"Name": "gemm0", "Metadata": "[ONNX Layer: n/one]\x1e[ONNX Layer: n/relu]"},
            {"Name": "both", "Metadata": "[ONNX Layer: n/one]\x1e[ONNX Layer: n/two]"},
            {"Name": "copy"},
            "a line without detail",
        ]
    }
    seconds = {"gemm0": 2e-6, "copy": 1e-6, "both": 5e-6, "unknown": 3e-6}
    found = device.name_kernels(
        seconds, described["Layers"], [layer("one", "n/one"), layer("two", "n/two")]
    )
    assert [(each.name, each.layers) for each in found] == [
        ("both", ("one", "two")),
        ("unknown", ()),
        ("gemm0", ("one",)),
        ("copy", ()),
    ]
    assert sum(each.seconds for each in found) == pytest.approx(sum(seconds.values()))


def test_every_call_exists_in_nvidias_package() -> None:
    """TensorRT-RTX installs without a GPU and has TensorRT's interface: names cannot be wrong."""
    known = {
        "trt": trt,
        "context": trt.IExecutionContext,
        "loaded": trt.ICudaEngine,
        "inspector": trt.EngineInspector,
    }
    used = {
        (node.value.id, node.attr)
        for module in (device, build_engine)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in known
    }
    assert {owner for owner, _ in used} == set(known)
    missing = [f"{owner}.{name}" for owner, name in used if not hasattr(known[owner], name)]
    assert not missing
    assert hasattr(trt.IProfiler, "report_layer_time")
    for name in ("FLOAT", "HALF", "BF16", "INT32", "INT64", "BOOL", "INT8", "UINT8"):
        dtype = getattr(torch, device.torch_name(getattr(trt.DataType, name)))
        assert isinstance(dtype, torch.dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
def test_without_a_gpu_it_says_what_to_do(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    plan = advise(model, target="a100", inputs=torch.randn(2, 64), trials=1, cache=False)
    artifact = plan.compile(tmp_path)
    assert isinstance(artifact, TensorrtArtifact)
    with pytest.raises(MissingDependencyError, match=r"sees no GPU here.*artifact\.verify\(\)"):
        artifact.check_on_gpu()
    with pytest.raises(MissingDependencyError, match="check_on_gpu"):
        artifact.benchmark()
    assert not (tmp_path / "gpu.json").exists()
