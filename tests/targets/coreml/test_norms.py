"""RMSNorm at every activation scale, where coremltools' own form is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from advisor.targets.coreml import TARGET, CoremlOptions
from tests.targets.making import Quantizer
from tests.targets.models import draw, seeded


class Normed(nn.Module):
    """(B, 64) normalised, and through a Linear beside it."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(64, eps=eps)
        self.linear = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.norm(x)
        return normed, self.linear(normed)


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Its definition, in float64."""
    exact = x.double()
    made = exact / (exact.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return (made * gain.double()).float()


@pytest.mark.parametrize("eps", [pytest.param(1e-5, marks=pytest.mark.slow), 1e-6])
@pytest.mark.parametrize(("scheme", "tolerance"), [("fp32", 1e-6), ("fp16", 4e-3)])
def test_rms_norm_is_exact(
    scheme: str, tolerance: float, eps: float, make_quantized: Quantizer, tmp_path: Path
) -> None:
    model = seeded(Normed(eps))
    gain = model.get_parameter("norm.weight")
    artifact = TARGET.emit(make_quantized(model, (draw(4, 64),), scheme), tmp_path)
    for scale in (300.0, 1.0, 0.01, 0.001, 1e-4):
        x = draw(4, 64, seed=3) * scale
        x[3] = 0.0
        found, _ = artifact.run(x)
        expected = rms_norm(x, gain, eps)
        for row in range(3):
            error = (found[row] - expected[row]).abs().max() / expected[row].abs().max()
            assert error < tolerance, (scale, row)
        assert torch.equal(found[3], torch.zeros(64))


def test_large_activations_do_not_overflow_in_float16(
    make_quantized: Quantizer, tmp_path: Path
) -> None:
    model = seeded(Normed(1e-6))
    target = TARGET.with_options(CoremlOptions(compute="float16"))
    artifact = target.emit(make_quantized(model, (draw(2, 64),), "w8"), tmp_path)
    x = draw(2, 64) * 5000.0  # whose squares end far beyond float16
    found, _ = artifact.run(x)
    expected = rms_norm(x, model.get_parameter("norm.weight"), 1e-6)
    torch.testing.assert_close(found, expected, rtol=4e-3, atol=1e-3)
