"""A model small enough to be compared in a test."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks import models


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.first(x).relu())
        return y


def tiny_case() -> models.Case:
    torch.manual_seed(0)
    model = Tiny().eval()
    data = torch.randn(24, 64)
    batches = [{"x": data[i : i + 1]} for i in range(24)]
    return models.Case(
        name="tiny",
        model=model,
        kind="embedding",
        batch=1,
        example=batches[0],
        calibration=[{"x": data[:8]}, {"x": data[8:16]}],
        evaluation=batches[16:],
        quality=lambda run: {"finite": float(torch.isfinite(run(data[16:17])).all())},
    )
