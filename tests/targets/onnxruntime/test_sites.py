"""Quantizers stay where the plan has them, whatever ONNX Runtime moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from advisor.targets.onnxruntime import TARGET
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
