"""Train the demo's digits network from scratch and write both of its files again.

    python examples/train_digits.py [--out FOLDER] [--epochs N]

Needs scikit-learn (``pip install "quantadvisor[dev]"``). Deterministic for one version of PyTorch
on one kind of CPU; takes about a minute on two cores. The 1797 images are split once, by a seeded
permutation: 1144 to train, 256 to calibrate, 397 to test. Nothing is chosen by the test images:
the last epoch's weights are kept.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from advisor.demo import digits

CALIBRATION = 256
TEST = 397
BATCH = 64

Model = TypeVar("Model", bound=nn.Module)


def split(seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Images uint8 (N, 8, 8) and labels uint8 (N,) of the three disjoint parts."""
    raw = load_digits()
    images = torch.from_numpy(raw.images).to(torch.uint8)
    labels = torch.from_numpy(raw.target).to(torch.uint8)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    parts = {
        "test": order[:TEST],
        "calibration": order[TEST : TEST + CALIBRATION],
        "train": order[TEST + CALIBRATION :],
    }
    return {name: (images[index], labels[index]) for name, index in parts.items()}


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move every image (N, 1, 8, 8) by up to one pixel each way, filling with blank."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    rows, columns = torch.randint(0, 3, (2, len(images)), generator=generator)
    steps = torch.arange(8)
    batch = torch.arange(len(images))[:, None, None]
    y = (rows[:, None] + steps)[:, :, None]
    x = (columns[:, None] + steps)[:, None, :]
    return padded[batch, 0, y, x].unsqueeze(1)


def train(
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    make: Callable[[], Model],
    max_lr: float = 6e-3,
    seed: int = 0,
) -> Model:
    """Fit a new network with AdamW, a one-cycle schedule and shifted images."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = make().train()
    steps = -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=max_lr, total_steps=epochs * steps
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(order), BATCH):
            index = order[start : start + BATCH]
            optimizer.zero_grad()
            logits = model(shift(images[index], generator))
            loss = criterion(logits, labels[index])
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def main() -> None:
    """Train, report the accuracy of all three parts, write the two files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=digits.WEIGHTS.parent)
    parser.add_argument("--epochs", type=int, default=60)
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    parts = split()
    started = time.perf_counter()
    images, labels = parts["train"]
    model = train(
        digits.pixels(images), labels.long(), epochs=arguments.epochs, make=digits.DigitsNet
    )
    print(f"trained in {time.perf_counter() - started:.0f} s")
    for name, (images, labels) in parts.items():
        with torch.no_grad():
            right = model(digits.pixels(images)).argmax(dim=1) == labels.long()
        print(f"{name}: {int(right.sum())} of {len(right)} right ({right.double().mean():.2%})")
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), arguments.out / digits.WEIGHTS.name)
    shipped = {
        "calibration": parts["calibration"][0],
        "calibration_labels": parts["calibration"][1],
        "test": parts["test"][0],
        "test_labels": parts["test"][1],
    }
    save_file(
        {name: tensor.contiguous() for name, tensor in shipped.items()},
        arguments.out / digits.IMAGES.name,
    )
    for name in (digits.WEIGHTS.name, digits.IMAGES.name):
        print(f"{arguments.out / name}: {(arguments.out / name).stat().st_size} bytes")


if __name__ == "__main__":
    main()
