"""SHA-256 over quantized weights: equal digests mean that every stored number is equal."""

from __future__ import annotations

import hashlib

import torch

from advisor.passes.graph import WeightTable


def table_sha256(table: WeightTable) -> str:
    """Digest of integers and scales: torch layout, unpacked to one byte, rows first.

    Integers are flattened to (rows, inputs) and scales to (rows, scales per row), so that a
    convolution gives the same digest whether its weight is stored flat or not. A float weight
    is hashed in its own dtype.
    """
    digest = hashlib.sha256()
    for tensor in (table.values, table.scale, table.zero_point):
        if tensor is None:
            digest.update(b"none;")
            continue
        if tensor is not table.values and tensor.is_floating_point():
            tensor = tensor.to(torch.float32)
        elif not tensor.is_floating_point():
            tensor = tensor.to(torch.int8)
        rows = tensor.detach().cpu().reshape(tensor.shape[0] if tensor.ndim else 1, -1)
        digest.update(f"{tensor.dtype}{tuple(rows.shape)};".encode())
        digest.update(rows.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
