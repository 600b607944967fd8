"""The demo model: a small residual CNN for the 8x8 handwritten digits that scikit-learn ships.

Weights and the images that the demo needs lie beside this file as safetensors, so that running
it needs neither scikit-learn nor a network; ``examples/train_digits.py`` makes both files again.
The images are the test set of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak,
1998, UCI repository, https://doi.org/10.24432/C50P49, CC BY 4.0), the copy in
``sklearn.datasets.load_digits``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from torch.nn import functional

from advisor.errors import ModelError

WEIGHTS: Final = Path(__file__).with_name("digits.safetensors")
IMAGES: Final = Path(__file__).with_name("digits_data.safetensors")
PIXEL_MAX: Final = 16.0
"""load_digits counts ink on a 4x4 patch, so a pixel is an integer from 0 to 16."""


class ConvBlock(nn.Module):
    """3x3 convolution, batch norm, ReLU: (B, I, H, W) to (B, O, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, rectify."""
        return functional.relu(self.norm(self.conv(x)))


class Residual(nn.Module):
    """Two 3x3 convolutions around an identity path: (B, C, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvBlock(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the two convolutions learn to the input."""
        return functional.relu(x + self.norm(self.second(self.first(x))))


class Separable(nn.Module):
    """Depthwise 3x3, pointwise expansion, residual add: (B, C, H, W) to the same shape.

    Depthwise weights have nine numbers per channel, which makes their ranges uneven and this the
    layer where per-channel scales matter most.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Filter each channel alone, mix the channels, add the input."""
        mixed = self.norm2(self.pointwise(functional.relu(self.norm1(self.depthwise(x)))))
        return functional.relu(x + mixed)


class DigitsNet(nn.Module):
    """Digits classifier: images (B, 1, 8, 8) in [0, 1] to logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBlock(1, 32)
        self.stage1 = Residual(32)
        self.down1 = ConvBlock(32, 64, stride=2)
        self.stage2 = Residual(64)
        self.down2 = ConvBlock(64, 64, stride=2)
        self.stage3 = Separable(64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch of images."""
        x = self.stage1(self.stem(x))
        x = self.stage2(self.down1(x))
        x = self.stage3(self.down2(x))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


@dataclass(frozen=True, slots=True, kw_only=True)
class DigitsData:
    """The images that ship with the package, none of which the weights were trained on.

    calibration: float32 (256, 1, 8, 8) in [0, 1]. test: float32 (397, 1, 8, 8). labels: int64.
    """

    calibration: Tensor
    calibration_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def calibration_batches(self, batch: int = 32) -> list[Tensor]:
        """The calibration images in batches of ``batch``; the last may be shorter."""
        starts = range(0, len(self.calibration), batch)
        return [self.calibration[start : start + batch] for start in starts]

    def calibration_correct(self, module: nn.Module) -> npt.NDArray[np.float64]:
        """1 for every calibration image that ``module`` gets right: the metric to plan with.

        Planning looks at these images only, so that the test images stay unseen.
        """
        return _correct(module, self.calibration, self.calibration_labels)

    def accuracy(self, classify: Callable[[Tensor], object]) -> float:
        """Share of the test images that get the right label.

        classify: images (N, 1, 8, 8) to logits (N, 10), as a tensor or a NumPy array.
        """
        return float(_correct(classify, self.test, self.test_labels).mean())


def load() -> DigitsNet:
    """The trained network in evaluation mode.

    Raises:
        ModelError: the weight file is missing or does not fit the network.
    """
    model = DigitsNet()
    try:
        model.load_state_dict(_read(WEIGHTS), strict=True)
    except RuntimeError as error:
        raise ModelError(f"{WEIGHTS.name} does not fit DigitsNet: {error}") from error
    return model.eval()


def data() -> DigitsData:
    """The calibration and test images, the same on every machine.

    Raises:
        ModelError: the image file is missing or damaged.
    """
    stored = _read(IMAGES)
    return DigitsData(
        calibration=pixels(stored["calibration"]),
        calibration_labels=stored["calibration_labels"].long(),
        test=pixels(stored["test"]),
        test_labels=stored["test_labels"].long(),
    )


def pixels(images: Tensor) -> Tensor:
    """uint8 (N, 8, 8) counts of ink to float32 (N, 1, 8, 8) in [0, 1]."""
    return images.float().div(PIXEL_MAX).unsqueeze(1)


def build() -> tuple[DigitsNet, Tensor, list[Tensor]]:
    """Model, example input and calibration batches, for ``advisor.demo.digits:build``."""
    images = data()
    return load(), images.calibration[:1], images.calibration_batches()


def _correct(
    classify: Callable[[Tensor], object], images: Tensor, labels: Tensor
) -> npt.NDArray[np.float64]:
    with torch.no_grad():
        logits = torch.as_tensor(classify(images))
    return (logits.argmax(dim=1) == labels).double().numpy()


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"the demo needs {path}, which cannot be read ({error}); reinstall quantadvisor or "
            "run examples/train_digits.py"
        ) from error
