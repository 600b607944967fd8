"""SHA-256 over quantized weights: equal digests mean that every stored number is equal."""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch

from advisor.passes.graph import WeightTable


class Digest(Protocol):
    """What hashlib returns."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take more bytes."""


def table_sha256(table: WeightTable) -> str:
    """Digest of integers and scales: torch layout, unpacked to one byte, rows first.

    Integers are flattened to (rows, inputs) and scales to (rows, scales per row), so that a
    convolution gives the same digest whether its weight is stored flat or not. A float weight
    is hashed in its own dtype, and so is a lookup table, after its indices.
    """
    is_float = table.values.is_floating_point()
    digest = hashlib.sha256()
    _add(digest, table.values if is_float else table.values.to(torch.int8))
    _add(digest, None if table.scale is None else table.scale.to(torch.float32))
    _add(digest, None if table.zero_point is None else table.zero_point.to(torch.int8))
    if table.table is not None:
        _add(digest, table.table)
    return digest.hexdigest()


def _add(digest: Digest, tensor: torch.Tensor | None) -> None:
    if tensor is None:
        digest.update(b"none;")
        return
    rows = tensor.detach().cpu().reshape(tensor.shape[0] if tensor.ndim else 1, -1)
    digest.update(f"{tensor.dtype}{tuple(rows.shape)};".encode())
    digest.update(bytes_of(rows))


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The elements in row-major order; those of a contiguous tensor are not copied."""
    dense = tensor.detach().cpu().contiguous().reshape(-1)
    return dense.view(torch.uint8).numpy().data
