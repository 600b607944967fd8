"""What torch.onnx cannot write is refused by name, not by its own report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from advisor.errors import UnsupportedError
from advisor.targets.onnxruntime import TARGET
from tests.targets.onnxruntime.conftest import Quantizer


class Bessel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.special.bessel_j0(self.linear(x))
        return found


def test_an_operator_without_onnx_form_is_named(make_quantized: Quantizer, tmp_path: Path) -> None:
    graph = make_quantized(Bessel().eval(), (torch.randn(2, 4),), "w8")
    with pytest.raises(UnsupportedError, match=r"torch\.onnx cannot write .*bessel_j0.*rewrite"):
        TARGET.emit(graph, tmp_path)
