"""A small vision transformer for the 8x8 digits: sixteen patches of 2x2 pixels and a class token.

    advisor plan examples.digits_vit:build --target intel-vnni -o build/vit.json

Pre-norm blocks as in Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021.
``examples/train_digits_models.py`` made the weights, on the images that trained the demo.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import torch
from torch import Tensor, nn

from advisor.demo import digits
from examples.stored import WEIGHTS, load_weights
from examples.transformer import Block

WEIGHT_FILE: Final = WEIGHTS / "digits_vit.safetensors"
PATCH, WIDTH, LAYERS, HEADS = 2, 64, 4, 4
PATCHES = (8 // PATCH) ** 2


class DigitsViT(nn.Module):
    """Images (B, 1, 8, 8) in [0, 1] to logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, stride=PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.position = nn.Parameter(torch.randn(1, PATCHES + 1, WIDTH) * 0.02)
        self.blocks = nn.Sequential(*(Block(WIDTH, HEADS) for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch of images."""
        patches = self.patches(x).flatten(2).transpose(1, 2)
        token = self.token.expand(patches.shape[0], -1, -1)
        states = self.blocks(torch.cat([token, patches], dim=1) + self.position)
        logits: Tensor = self.head(self.norm(states[:, 0]))
        return logits


@cache
def load() -> DigitsViT:
    """The trained network in evaluation mode.

    Raises:
        ModelError: the weights are missing or made for another architecture.
    """
    return load_weights(DigitsViT(), WEIGHT_FILE)


def build() -> tuple[DigitsViT, Tensor, list[Tensor]]:
    """Model, example input and calibration batches; ``digits.data()`` has the test images."""
    images = digits.data()
    return load(), images.calibration[:1], images.calibration_batches()
