"""Calibration data on disk: read once from any iterable, replayed as often as needed.

Every item is one flat tuple of tensors (a call's inputs, or a call's outputs). Only one item is in
memory at a time, so a generator larger than memory works.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import (
    load_file,  # pyright: ignore[reportUnknownVariableType]
    save_file,  # pyright: ignore[reportUnknownVariableType]
)


class Spool:
    """A folder of numbered items; append-only. The caller owns and removes the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._constants: list[tuple[Any, ...]] = []
        self._samples: list[int] = []
        self._hash = hashlib.sha256()

    def __len__(self) -> int:
        return len(self._constants)

    @property
    def samples(self) -> int:
        """Sum of the items' batch sizes."""
        return sum(self._samples)

    @property
    def digest(self) -> str:
        """SHA-256 over everything appended so far, in order."""
        return self._hash.hexdigest()

    def append(self, values: Sequence[Any], *, batch: int) -> None:
        """Store one item; values that are no tensors stay in memory."""
        tensors: dict[str, torch.Tensor] = {}
        for index, value in enumerate(values):
            if isinstance(value, torch.Tensor):
                dense = value.detach().cpu().contiguous().clone()
                tensors[f"{index:04d}"] = dense
                self._hash.update(f"{index} {dense.dtype} {tuple(dense.shape)}".encode())
                self._hash.update(dense.reshape(-1).view(torch.uint8).numpy().data)
            else:
                self._hash.update(f"{index} {value!r}".encode())
        save_file(tensors, self._file(len(self)))
        constants = [None if isinstance(value, torch.Tensor) else value for value in values]
        self._constants.append(tuple(constants))
        self._samples.append(batch)

    def read(self, index: int) -> list[Any]:
        """One item, with its tensors loaded."""
        values = list(self._constants[index])
        for key, tensor in load_file(self._file(index)).items():
            values[int(key)] = tensor
        return values

    def batch(self, index: int) -> int:
        """Batch size of one item."""
        return self._samples[index]

    def __iter__(self) -> Iterator[list[Any]]:
        return (self.read(index) for index in range(len(self)))

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:06d}.safetensors"
