"""``storage_bits`` against the bytes of every weight in a written file."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from advisor import Plan, advise
from advisor.formats import scheme_named, storage_bits
from advisor.targets.base import Artifact

BITS = {"FLOAT": 32, "FLOAT16": 16, "INT8": 8, "UINT8": 8, "INT4": 4, "INT2": 2}


class Net(nn.Module):
    """One layer of every operator that takes integer weights, all divisible by 128."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 128)
        self.conv1d = nn.Conv1d(128, 128, 1)
        self.conv2d = nn.Conv2d(1, 128, 3, padding=1)
        self.linear = nn.Linear(128, 24)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.conv1d(self.table(tokens).transpose(1, 2))
        x = self.conv2d(x.unsqueeze(1)).mean(dim=3)
        found: torch.Tensor = self.linear(x.mean(dim=2))
        return found


@pytest.fixture(scope="module")
def unquantized() -> Plan:
    """A plan with every layer in float32."""
    torch.manual_seed(0)
    tokens = torch.randint(0, 40, (4, 6))
    batches = [tokens, tokens.flip(0)]
    plan = advise(Net().eval(), target="intel-vnni", calibration=batches, trials=1, cache=False)
    return plan.pin("*", "fp32")


@pytest.mark.parametrize(
    "scheme", ["fp32", "fp16", "w8a8", "w8", "w8-g64", "w4-g32", "w4-g128", "w2-g64", "w2-g128"]
)
def test_bytes_of_every_weight(scheme: str, unquantized: Plan, tmp_path: Path) -> None:
    plan = unquantized
    for layer in unquantized.layers:
        if any(option.scheme == scheme and not option.reason for option in layer.options):
            plan = plan.pin(layer.name, scheme)
    assert {layer.name: layer.scheme for layer in plan.layers}["linear"] == scheme
    artifact = plan.compile(tmp_path / "build")
    stored = {i.name: i for i in onnx.load(artifact.path / "model.onnx").graph.initializer}
    for layer in plan.layers:
        parts = [i for name, i in stored.items() if is_part(name, layer.weight)]
        assert parts, layer.name
        found = sum(size_bits(i) for i in parts)
        fmt = scheme_named(layer.scheme).weight
        assert found == storage_bits(layer.weight_shape, fmt), (layer.name, layer.scheme)
        assert found // 8 == layer.size_bytes


def is_part(name: str, weight: str) -> bool:
    """Whether an initializer is part of a stored weight; its shape as a constant is not."""
    return name == weight or (name.startswith(f"{weight}_") and not name.endswith("_shape"))


def size_bits(initializer: onnx.TensorProto) -> int:
    count = 1
    for size in initializer.dims:
        count *= size
    return -(-count * BITS[onnx.TensorProto.DataType.Name(initializer.data_type)] // 8) * 8


def test_any_artifact_can_be_loaded_by_its_folder(tmp_path: Path) -> None:
    plan = advise(
        nn.Linear(8, 4), target="intel-vnni", inputs=torch.randn(2, 8), trials=1, cache=False
    )
    written = plan.compile(tmp_path / "build")
    loaded = Artifact.load(tmp_path / "build")
    assert loaded.verify().ok
    x = torch.randn(3, 8)
    torch.testing.assert_close(loaded.run(x), written.run(x), rtol=0, atol=0)
