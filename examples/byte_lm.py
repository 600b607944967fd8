"""A small language model over bytes, trained on the sources of Python's standard library.

    advisor plan examples.byte_lm:build --target intel-vnni -o build/byte_lm.json

Three pre-norm decoder blocks of width 128, a context of 128 bytes, the head tied to the embedding.
Text comes from the top-level modules of the running Python; a hash of the file's name decides
whether it trains, calibrates or evaluates, so that no version of Python mixes them up. The weights
in ``weights/byte_lm.safetensors`` were made by ``examples/train_byte_lm.py``.
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.stored import WEIGHTS, load_weights
from examples.transformer import Block

WEIGHT_FILE: Final = WEIGHTS / "byte_lm.safetensors"
VOCABULARY, WIDTH, LAYERS, HEADS, CONTEXT = 256, 128, 3, 4, 128
BATCH, CALIBRATION, EVALUATION = 8, 128, 256

Part = Literal["train", "calibration", "evaluation"]


class ByteLM(nn.Module):
    """Bytes (B, T) with T up to 128 to logits of the next byte (B, T, 256)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Parameter(torch.randn(CONTEXT, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(Block(WIDTH, HEADS, causal=True) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=WIDTH**-0.5)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Predict the byte after every position."""
        x = self.embedding(input_ids) + self.position[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


@cache
def load() -> ByteLM:
    """The trained model in evaluation mode.

    Raises:
        ModelError: the weights are missing or made for another architecture.
    """
    return load_weights(ByteLM(), WEIGHT_FILE)


def build() -> tuple[ByteLM, Tensor, list[Tensor]]:
    """Model, example input and calibration batches."""
    batches = calibration_batches()
    return load(), batches[0][:1], batches


@cache
def text(part: Part) -> bytes:
    """The modules of one part, joined."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"), key=lambda file: file.name)
    return b"\n".join(file.read_bytes() for file in files if part_of(file.name) == part)


def part_of(name: str) -> Part:
    """Which part a file belongs to: 80 % train, 10 % calibrate, 10 % evaluate."""
    drawn = sha256(name.encode()).digest()[0] / 256
    return "evaluation" if drawn < 0.1 else "calibration" if drawn < 0.2 else "train"


def windows(part: Part, count: int) -> Tensor:
    """Stretches of ``CONTEXT`` + 1 bytes, evenly spaced over a part: int64 (count, 129)."""
    data = torch.frombuffer(bytearray(text(part)), dtype=torch.uint8).long()
    starts = torch.linspace(0, len(data) - CONTEXT - 1, count).long()
    return data[starts[:, None] + torch.arange(CONTEXT + 1)]


def calibration_batches() -> list[Tensor]:
    """Bytes (8, 128) of files that neither trained the model nor evaluate it."""
    return _in_batches(windows("calibration", CALIBRATION)[:, :-1])


def evaluation_batches() -> list[Tensor]:
    """Bytes (8, 128) of files that are used for nothing else."""
    return _in_batches(windows("evaluation", EVALUATION)[:, :-1])


def bits_per_byte(predict: Callable[[Tensor], object]) -> float:
    """Mean code length of the held-out bytes under a model; lower is better.

    predict: bytes (8, 128) to logits (8, 128, 256), as a tensor or a NumPy array.
    """
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in _in_batches(windows("evaluation", EVALUATION)):
            logits = torch.as_tensor(predict(batch[:, :-1]))
            targets = batch[:, 1:].flatten()
            total += float(functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum"))
            count += len(targets)
    return total / count / math.log(2)


def unigram_entropy() -> float:
    """Bits per byte of the best model that ignores context, on the held-out windows."""
    counts = torch.bincount(windows("evaluation", EVALUATION)[:, 1:].flatten(), minlength=256)
    share = counts[counts > 0].double() / counts.sum()
    return float(-(share * share.log2()).sum())


def _in_batches(rows: Tensor) -> list[Tensor]:
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
