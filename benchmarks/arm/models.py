"""The models that run on emulated cores: two from the other comparison, and a transformer."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from benchmarks.models import Case, digits_cnn, digits_mobilenet
from examples.transformer import Block

WIDTH, HEADS, LAYERS, TOKENS, LABELS = 256, 4, 2, 16, 32


class Encoder(nn.Module):
    """States (B, TOKENS, WIDTH) to a label of every token (B, TOKENS, LABELS)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(WIDTH, HEADS) for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, LABELS)

    def forward(self, states: Tensor) -> Tensor:
        """Classify every token."""
        logits: Tensor = self.head(self.norm(self.blocks(states)))
        return logits


def encoder(batch: int) -> Case:
    """Two blocks of a transformer, random weights: for instructions, not for accuracy."""
    torch.manual_seed(0)
    states = [torch.randn(batch, TOKENS, WIDTH) for _ in range(4)]
    return Case(
        name="encoder",
        model=Encoder().eval(),
        kind="logits",
        batch=batch,
        example={"states": states[0]},
        calibration=[{"states": each} for each in states],
        evaluation=[{"states": each} for each in states],
    )


MODELS: Final = {
    "digits_cnn": digits_cnn,
    "digits_mobilenet": digits_mobilenet,
    "encoder": encoder,
}
"""By name; each takes a batch size."""
