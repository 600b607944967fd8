"""Train the byte-level language model and write its weights.

    python -m examples.train_byte_lm [--out FOLDER] [--steps N]

Deterministic for one version of Python and PyTorch on one kind of CPU; takes eight minutes on one
core. Nothing is chosen by the evaluation files: the last step's weights are kept.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch.nn import functional

from examples.byte_lm import (
    CONTEXT,
    VOCABULARY,
    WEIGHT_FILE,
    ByteLM,
    bits_per_byte,
    text,
    unigram_entropy,
)
from examples.stored import load_weights, save_weights

BATCH = 16
WARMUP = 0.05
LEARNING_RATE = 3e-3


def train(steps: int, *, seed: int = 0) -> ByteLM:
    """Fit the model to random windows of the training files with AdamW and a one-cycle schedule."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data = torch.frombuffer(bytearray(text("train")), dtype=torch.uint8).long()
    model = ByteLM().train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, total_steps=steps, pct_start=WARMUP, cycle_momentum=False
    )
    started = time.perf_counter()
    for step in range(steps):
        starts = torch.randint(0, len(data) - CONTEXT - 1, (BATCH, 1), generator=generator)
        window = data[starts + torch.arange(CONTEXT + 1)]
        logits = model(window[:, :-1]).reshape(-1, VOCABULARY)
        loss = functional.cross_entropy(logits, window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            seconds = time.perf_counter() - started
            print(f"step {step}: {float(loss.detach()):.3f} nats, {seconds:.0f} s", flush=True)
    return model.eval()


def main() -> None:
    """Train, write the weights, report bits per byte of what was written."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=WEIGHT_FILE.parent)
    parser.add_argument("--steps", type=int, default=1600)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    path = arguments.out / WEIGHT_FILE.name
    save_weights(train(arguments.steps), path)
    found = bits_per_byte(load_weights(ByteLM(), path))
    print(f"{path}: {path.stat().st_size} bytes")
    print(f"held-out files: {found:.3f} bits per byte; without context {unigram_entropy():.3f}")


if __name__ == "__main__":
    main()
