"""A head that reads the table of tokens runs on integers, and the table keeps the same ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from advisor.errors import UnsupportedError
from advisor.targets.onnxruntime.artifact import OnnxRuntimeArtifact
from advisor.targets.onnxruntime.onnxfile import load_model
from tests.targets.tied import VOCABULARY, WIDTH, batches, decoder, plan_of


@pytest.mark.parametrize(
    ("scheme", "alone", "kernel", "row_bytes"),
    [
        ("w8a8", "w8", "MatMulIntegerToFloat", WIDTH + 4),
        ("w8a8-dynamic", "w8", "DynamicQuantizeMatMul", WIDTH + 4),
        ("w4a8-dynamic-g32", "w4-g32", "MatMulNBits", WIDTH // 2 + 4 * WIDTH // 32),
    ],
)
def test_head_and_table_share_integers(
    scheme: str, alone: str, kernel: str, row_bytes: int, tmp_path: Path
) -> None:
    plan = plan_of(scheme)
    decided = {layer.name: layer for layer in plan.layers}
    assert decided["table"].scheme == decided["head"].scheme == scheme
    assert decided["table"].size_bytes + decided["head"].size_bytes == VOCABULARY * row_bytes
    artifact = plan.compile(tmp_path / "build")  # verifies, or raises
    assert isinstance(artifact, OnnxRuntimeArtifact)
    formats = artifact.read_back()
    assert formats["table"].scheme == alone
    assert formats["table"].weight_sha256 == formats["head"].weight_sha256
    assert formats["head"].kernel == kernel
    if alone == "w8":  # from 64 KiB on equal bytes are stored once
        written = sum(file.stat().st_size for file in artifact.path.glob("model.onnx*"))
        assert written < VOCABULARY * row_bytes + 4 * WIDTH * WIDTH + 40_000
    x = batches(1)[0]
    torch.testing.assert_close(artifact.run(x), plan.apply()(x), rtol=1e-3, atol=1e-3)


def test_the_numbers_are_the_formulas(tmp_path: Path) -> None:
    """Rows of the stored integers, and a head on integers of its input, one scale for all of it."""
    artifact = plan_of("w8a8-dynamic").compile(tmp_path / "build")
    assert isinstance(artifact, OnnxRuntimeArtifact)
    stored = load_model(artifact.path / "model.onnx").graph.initializers
    tables = [v.const_value for v in stored.values() if v.const_value is not None]
    integers = next(t.numpy() for t in tables if t.shape == (VOCABULARY, WIDTH))
    scales = next(t.numpy() for t in tables if t.shape == (VOCABULARY, 1))
    ids = batches(1)[0]
    weight = torch.tensor(integers * scales)
    with torch.no_grad():
        x = torch.relu(decoder().middle(weight[ids]))
    step = (x.max() - x.min().clamp(max=0)) / 255
    zero = torch.round(-x.min().clamp(max=0) / step)
    rounded = (torch.round(x / step) + zero).clamp(0, 255) - zero
    expected = rounded @ torch.tensor(integers).float().T * step * torch.tensor(scales[:, 0])
    torch.testing.assert_close(artifact.run(ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
def test_a_table_alone_has_no_activations(scheme: str) -> None:
    plan = plan_of(scheme, tied=False)
    table = next(layer for layer in plan.layers if layer.name == "table")
    assert table.scheme == "fp32"
    refused = {option.scheme: option.reason for option in table.options if option.reason}
    assert "only on linear" in refused[scheme]


def test_a_head_follows_no_table_that_cannot_take_its_weight() -> None:
    said = (
        "head cannot be pinned to w8a8-dynamic-g32: table, which must take it too: .* w8-g32 only"
    )
    with pytest.raises(UnsupportedError, match=said):
        plan_of("w8a8-dynamic-g32")
