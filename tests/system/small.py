"""A network of three layers on the digits images, for what does not need a trained one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from advisor import Plan, advise
from advisor.demo import digits

IMAGES = digits.data()


class Stem(nn.Module):
    """A convolution of its own path, (B, 1, 8, 8) to (B, 8, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv(x))


class Small(nn.Module):
    """Two convolutions and a linear layer, images (B, 1, 8, 8) to logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem()
        self.body = nn.Conv2d(8, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(F.relu(self.body(self.stem(x))).mean((2, 3)))
        return logits


def load() -> Small:
    """The network in evaluation mode; the same random weights every time."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    try:
        return Small().eval()
    finally:
        torch.set_rng_state(state)


def build() -> tuple[nn.Module, torch.Tensor, list[torch.Tensor]]:
    """Model, example input and calibration batches, for ``tests.system.small:build``."""
    return load(), IMAGES.calibration[:1], IMAGES.calibration_batches(64)[:2]


def plan_small(**options: Any) -> Plan:
    """Plan for intel-vnni with one trial and two batches of images, or as the options say."""
    settings: dict[str, Any] = {
        "target": "intel-vnni",
        "calibration": IMAGES.calibration_batches(64)[:2],
        "trials": 1,
        "cache": False,
    }
    model = options.pop("model", None)
    return advise(load() if model is None else model, **(settings | options))
