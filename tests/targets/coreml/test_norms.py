"""RMSNorm at every activation scale, where coremltools' own form is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from advisor.targets.coreml import TARGET, CoremlOptions
from tests.targets.making import Quantizer
from tests.targets.models import draw, seeded

EPS = (1e-5, 1e-6)


class Normed(nn.Module):
    """(B, 64) normalised with one eps and another, and through a Linear beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other = (nn.RMSNorm(64, eps=eps) for eps in EPS)
        self.linear = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed = self.norm(x)
        return normed, self.other(x), self.linear(normed)


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Its definition, in float64."""
    exact = x.double()
    made = exact / (exact.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return (made * gain.double()).float()


@pytest.mark.parametrize(("scheme", "tolerance"), [("fp32", 1e-6), ("fp16", 4e-3)])
def test_rms_norm_is_exact(
    scheme: str, tolerance: float, make_quantized: Quantizer, tmp_path: Path
) -> None:
    model = seeded(Normed())
    artifact = TARGET.emit(make_quantized(model, (draw(4, 64),), scheme), tmp_path)
    for scale in (300.0, 1.0, 0.01, 0.001, 1e-4):
        x = draw(4, 64, seed=3) * scale
        x[3] = 0.0
        *results, _ = artifact.run(x)
        for name, eps, found in zip(("norm", "other"), EPS, results, strict=True):
            expected = rms_norm(x, model.get_parameter(f"{name}.weight"), eps)
            for row in range(3):
                error = (found[row] - expected[row]).abs().max() / expected[row].abs().max()
                assert error < tolerance, (eps, scale, row)
            assert torch.equal(found[3], torch.zeros(64))


def test_large_activations_do_not_overflow_in_float16(
    make_quantized: Quantizer, tmp_path: Path
) -> None:
    model = seeded(Normed())
    target = TARGET.with_options(CoremlOptions(compute="float16"))
    artifact = target.emit(make_quantized(model, (draw(2, 64),), "w8"), tmp_path)
    x = draw(2, 64) * 5000.0  # whose squares end far beyond float16
    _, found, _ = artifact.run(x)
    expected = rms_norm(x, model.get_parameter("other.weight"), EPS[1])
    torch.testing.assert_close(found, expected, rtol=4e-3, atol=1e-3)
