"""Train the digits MobileNet and vision transformer and write their weights.

    python -m examples.train_digits_models [mobilenet] [vit] [--out FOLDER]

Needs scikit-learn (``pip install "quantadvisor[examples]"``). Images, split and augmentation are
those of ``train_digits.py``. Deterministic for one version of PyTorch on one kind of CPU; takes a
few minutes on one core. Nothing is chosen by the test images: the last epoch's weights are kept.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn

from advisor.demo import digits
from examples import digits_mobilenet, digits_vit
from examples.stored import WEIGHTS, load_weights, save_weights
from examples.train_digits import split, train


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one model is made. max_lr: peak of the one-cycle schedule."""

    make: Callable[[], nn.Module]
    file: str
    epochs: int
    max_lr: float


RECIPES: Final = {
    "mobilenet": Recipe(
        make=digits_mobilenet.DigitsMobileNet,
        file=digits_mobilenet.WEIGHT_FILE.name,
        epochs=60,
        max_lr=6e-3,
    ),
    "vit": Recipe(
        make=digits_vit.DigitsViT, file=digits_vit.WEIGHT_FILE.name, epochs=100, max_lr=2e-3
    ),
}


def main() -> None:
    """Train, write the weights, report the accuracy of what was written."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=" or ".join(RECIPES))
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(RECIPES):
        parser.error(f"no model named {', '.join(unknown)}; known: {', '.join(RECIPES)}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    images, labels = split()["train"]
    for name in arguments.names or RECIPES:
        recipe, started = RECIPES[name], time.perf_counter()
        model = train(
            digits.pixels(images),
            labels.long(),
            make=recipe.make,
            epochs=recipe.epochs,
            max_lr=recipe.max_lr,
        )
        path = arguments.out / recipe.file
        save_weights(model, path)
        accuracy = digits.data().accuracy(load_weights(recipe.make(), path))
        seconds = time.perf_counter() - started
        print(f"{path}: {path.stat().st_size} bytes, {seconds:.0f} s, test {accuracy:.2%}")


if __name__ == "__main__":
    main()
