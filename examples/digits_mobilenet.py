"""A small MobileNetV2 for the 8x8 digits: depthwise convolutions, batch norm, ReLU6.

    advisor plan examples.digits_mobilenet:build --target intel-vnni -o build/mobilenet.json

Its blocks are those of Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
2018. ``examples/train_digits_models.py`` made the weights, on the images that trained the demo.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from torch import Tensor, nn

from advisor.demo import digits
from examples.stored import WEIGHTS, load_weights

WEIGHT_FILE: Final = WEIGHTS / "digits_mobilenet.safetensors"
STEM, HEAD, EXPANSION = 16, 128, 4
STAGES: Final = ((16, 1), (24, 1), (40, 2), (40, 1), (64, 2), (64, 1))
"""Outputs and stride of every block."""


class ConvNorm(nn.Sequential):
    """Convolution, batch norm, and ReLU6 unless ``linear``; "same" padding."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        padding = size // 2
        convolution = nn.Conv2d(inputs, outputs, size, stride, padding, groups=groups, bias=False)
        steps: list[nn.Module] = [convolution, nn.BatchNorm2d(outputs)]
        super().__init__(*steps, *([] if linear else [nn.ReLU6()]))


class InvertedResidual(nn.Module):
    """Expand, filter every channel alone, project: (B, I, H, W) to (B, O, H / s, W / s).

    The input is added when the shapes agree. The last convolution has no activation function.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        wide = inputs * EXPANSION
        self.residual = stride == 1 and inputs == outputs
        self.expand = ConvNorm(inputs, wide, 1)
        self.filter = ConvNorm(wide, wide, 3, stride=stride, groups=wide)
        self.project = ConvNorm(wide, outputs, 1, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        """Transform, and add the input where it fits."""
        y: Tensor = self.project(self.filter(self.expand(x)))
        return x + y if self.residual else y


class DigitsMobileNet(nn.Module):
    """Images (B, 1, 8, 8) in [0, 1] to logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (STEM, *(outputs for outputs, _ in STAGES))
        self.stem = ConvNorm(1, STEM, 3)
        self.blocks = nn.Sequential(
            *(
                InvertedResidual(before, outputs, stride=stride)
                for before, (outputs, stride) in zip(inputs, STAGES, strict=False)
            )
        )
        self.last = ConvNorm(inputs[-1], HEAD, 1)
        self.head = nn.Linear(HEAD, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch of images."""
        features = self.last(self.blocks(self.stem(x)))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


@cache
def load() -> DigitsMobileNet:
    """The trained network in evaluation mode.

    Raises:
        ModelError: the weights are missing or made for another architecture.
    """
    return load_weights(DigitsMobileNet(), WEIGHT_FILE)


def build() -> tuple[DigitsMobileNet, Tensor, list[Tensor]]:
    """Model, example input and calibration batches; ``digits.data()`` has the test images."""
    images = digits.data()
    return load(), images.calibration[:1], images.calibration_batches()
