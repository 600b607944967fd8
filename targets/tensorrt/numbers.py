"""Numbers between torch and ONNX, narrow floats included, which NumPy itself does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

ONNX_KINDS: Final[Mapping[str, str]] = {
    "float32": "FLOAT",
    "float16": "FLOAT16",
    "bfloat16": "BFLOAT16",
    "float8_e4m3": "FLOAT8E4M3FN",
    "int8": "INT8",
    "int4": "INT4",
    "fp4": "FLOAT4E2M1",
}
"""ONNX's name of every dtype that is written here."""

_NARROW: Final = {
    torch.bfloat16: (torch.int16, "BFLOAT16"),
    torch.float8_e4m3fn: (torch.uint8, "FLOAT8E4M3FN"),
}
"""Of what NumPy lacks: the integers with the same bits, and ONNX's name."""


def array_of(tensor: torch.Tensor) -> Array:
    """A torch tensor as an array; float8 and bfloat16 in the dtypes of ml_dtypes."""
    plain = tensor.detach().cpu().contiguous()
    if plain.dtype not in _NARROW:
        return plain.numpy()
    import onnx_ir as ir

    bits, kind = _NARROW[plain.dtype]
    return plain.view(bits).numpy().view(ir.DataType[kind].numpy())


def tensor_of(array: Array) -> torch.Tensor:
    """Undo ``array_of``; int4 comes as int8 and float4 as float8, one element a byte."""
    kind = str(array.dtype)
    dense = np.array(array)  # a file's own arrays are read-only
    if kind == "bfloat16":
        return torch.as_tensor(dense.view(np.int16)).view(torch.bfloat16)
    if kind == "float8_e4m3fn":
        return torch.as_tensor(dense.view(np.uint8)).view(torch.float8_e4m3fn)
    if kind == "float4_e2m1fn":
        return torch.as_tensor(dense.astype(np.float32)).to(torch.float8_e4m3fn)
    if kind == "int4":
        dense = dense.astype(np.int8)
    return torch.as_tensor(dense)


def stored_array(value: ir.Value | None) -> Array | None:
    """The constant that a value is; None when it is computed."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def kind_of(value: ir.Value | None) -> str:
    """ONNX's name of a value's dtype; empty when it is not known."""
    return "" if value is None or value.dtype is None else value.dtype.name
