"""Quantizers stay where the plan has them, whatever ONNX Runtime moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advisor.targets.onnxruntime import TARGET
from advisor.targets.onnxruntime.manifest import MODEL_FILE
from advisor.targets.onnxruntime.onnxfile import load_model
from advisor.targets.onnxruntime.session import EXTERNAL, open_session
from tests.targets.onnxruntime.conftest import Quantizer

MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "transpose": lambda x: x.transpose(0, 1),
    "reshape": lambda x: x.reshape(-1, 16),
    "slice": lambda x: x[:, 2:],
    "two in a row": lambda x: x.transpose(0, 1)[:, 1:],
}


class Returned(nn.Module):
    """A hidden state is an output, and a quantized layer reads it through a view."""

    def __init__(self, move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.move = move
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.norm(x)
        return hidden, self.head(self.move(hidden))


@pytest.mark.parametrize("move", MOVES)
def test_an_output_stays_in_float_when_a_view_of_it_is_quantized(
    move: str, make_quantized: Quantizer, tmp_path: Path
) -> None:
    model = Returned(MOVES[move]).eval()
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    artifact = TARGET.emit(make_quantized(model, (x,), "w8a8"), tmp_path)
    assert artifact.verify().mismatches == ()
    with torch.no_grad():
        hidden = model(x)[0]
    torch.testing.assert_close(artifact.run(x)[0], hidden, atol=1e-5, rtol=1e-5)


class Strided(nn.Module):
    """What TensorFlow's padding makes of a convolution with a stride: zeros on one side."""

    def __init__(self, *pad: Any) -> None:
        super().__init__()
        self.pad = pad
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, stride=2, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.hardtanh(self.first(x), 0.0, 1.0)
        return F.hardtanh(self.second(F.pad(inner, *self.pad)), 0.0, 1.0)


@pytest.mark.parametrize(
    "pad",
    [([0, 1, 0, 1],), ([1, 0, 0, 2], "reflect"), ([0, 1, 0, 1], "constant", 0.4)],
    ids=["zeros", "reflect", "constant"],
)
def test_integers_are_padded_as_integers(
    pad: Any, make_quantized: Quantizer, tmp_path: Path
) -> None:
    model = Strided(*pad).eval()
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    artifact = TARGET.emit(make_quantized(model, (x,), "w8a8"), tmp_path)
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    optimized = tmp_path / "optimized.onnx"
    open_session(tmp_path / MODEL_FILE, EXTERNAL, optimized=optimized)
    nodes = list(load_model(optimized).graph)
    (padding,) = [node for node in nodes if node.op_type == "Pad"]
    source = padding.inputs[0]
    assert source is not None
    assert getattr(source.producer(), "op_type", "") == "QLinearConv"
    assert [node.op_type for node in nodes].count("QLinearConv") == 2
