"""Constants of a program, and weights that are expanded when the model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

BLOCKWISE = "constexpr_blockwise_shift_scale"
AFFINE = "constexpr_affine_dequantize"
LOOKUP = "constexpr_lut_to_dense"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One constant as it is stored. dtype: MIL's name of the elements'.

    values: integers or indices (int8 or uint8, unpacked), or floats. scale: of the rank of
    values, one entry per run of elements that share it. offset: zero points of the same shape.
    table: (tables..., entries) for indices, whose own scale is table_scale.
    """

    values: torch.Tensor
    dtype: str
    scale: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    table: torch.Tensor | None = None
    table_scale: torch.Tensor | None = None
    table_dtype: str = ""

    def expand(self) -> torch.Tensor:
        """The numbers that it stands for, float32."""
        if self.table is not None:
            return self._look_up(self.table)
        real = self.values.to(torch.float32)
        if self.scale is None:
            return real
        if self.offset is not None:
            real = real - _widen(self.offset.to(torch.float32), real.shape)
        return real * _widen(self.scale.to(torch.float32), real.shape)

    def _look_up(self, table: torch.Tensor) -> torch.Tensor:
        entries = table.to(torch.float32)
        if self.table_scale is not None:
            entries = entries * _widen(self.table_scale.to(torch.float32), entries.shape)
        shape = (*self.values.shape, entries.shape[-1])
        wide = _widen(entries, shape) if entries.ndim == len(shape) else entries.expand(shape)
        return torch.gather(wide, -1, self.values.to(torch.int64).unsqueeze(-1)).squeeze(-1)


def read_weight(var: Any) -> Weight | None:
    """How a constant is stored; None for what is computed while the model runs."""
    op = var.op
    if op is None:
        return None
    if op.op_type == "const":
        return Weight(values=_tensor(var.val), dtype=type_name(var.dtype))
    if op.op_type == BLOCKWISE:
        data = op.inputs["data"]
        stored = read_weight(data)
        if stored is None or stored.scale is not None:
            return None  # a chain that this package does not write
        return Weight(
            values=stored.values,
            dtype=type_name(data.dtype),
            scale=_tensor(op.inputs["scale"].val),
            offset=_optional(op, "offset"),
        )
    if op.op_type == AFFINE:
        return _read_affine(op)
    if op.op_type == LOOKUP:
        return _read_lookup(op)
    return None


def type_name(dtype: Any) -> str:
    """MIL's name of a type: "fp16", "int4", ..."""
    from advisor.targets.coreml.packages import load

    return str(load("coremltools.converters.mil.mil.types").builtin_to_string(dtype))


def _read_affine(op: Any) -> Weight:
    """One scale along an axis, or one for all (iOS16)."""
    data = op.inputs["quantized_data"]
    values = _tensor(data.val)
    axis = int(op.inputs["axis"].val)

    def placed(name: str) -> torch.Tensor:
        tensor = _tensor(op.inputs[name].val)
        shape = [1] * values.ndim
        if tensor.numel() > 1:
            shape[axis] = -1
        return tensor.reshape(shape)

    offset = placed("zero_point")
    return Weight(
        values=values,
        dtype=type_name(data.dtype),
        scale=placed("scale"),
        offset=offset if bool(offset.any()) else None,
    )


def _read_lookup(op: Any) -> Weight | None:
    if "shape" in op.inputs and op.inputs["shape"] is not None:  # iOS16: packed bits, one table
        shape = [int(size) for size in op.inputs["shape"].val]
        entries = _tensor(op.inputs["lut"].val).reshape(-1)
        bits = len(entries).bit_length() - 1
        values = _unpack(np.asarray(op.inputs["indices"].val), bits, int(np.prod(shape)))
        return Weight(
            values=torch.as_tensor(values).reshape(shape),
            dtype=f"uint{bits}",
            table=entries,
            table_dtype=type_name(op.inputs["lut"].dtype),
        )
    table = read_weight(op.inputs["lut"])
    if table is None or op.inputs["lut"].shape[-1] != 1:
        return None  # vectors of weights, which this package does not write
    return Weight(
        values=_tensor(op.inputs["indices"].val),
        dtype=type_name(op.inputs["indices"].dtype),
        table=table.values[..., 0],
        table_scale=None if table.scale is None else table.scale[..., 0],
        table_dtype=table.dtype,
    )


def _unpack(packed: np.ndarray[Any, Any], bits: int, count: int) -> np.ndarray[Any, Any]:
    """Indices from bytes, the lowest bits first."""
    stream = np.unpackbits(packed.reshape(-1).view(np.uint8), bitorder="little")[: count * bits]
    places = (1 << np.arange(bits)).astype(np.uint8)
    indices: np.ndarray[Any, Any] = (stream.reshape(count, bits) * places).sum(1, dtype=np.uint8)
    return indices


def _widen(part: torch.Tensor, shape: tuple[int, ...] | torch.Size) -> torch.Tensor:
    """Repeat every entry along each axis as often as it takes."""
    for axis, (have, want) in enumerate(zip(part.shape, shape, strict=True)):
        if have not in (1, want):
            part = part.repeat_interleave(want // have, dim=axis)
    return part.expand(shape)


def _optional(op: Any, name: str) -> torch.Tensor | None:
    var = op.inputs.get(name)
    return None if var is None else _tensor(var.val)


def _tensor(value: Any) -> torch.Tensor:
    """A constant's value; coremltools keeps narrow integers in wider ones with a mark."""
    array = np.asarray(value)
    if array.dtype.names is None and array.dtype.metadata:  # uint4 and the like
        plain = np.int8 if array.dtype.kind == "i" else np.uint8
        array = array.astype(np.dtype(plain.__name__))
    if array.dtype == np.uint16:
        array = array.astype(np.int32)
    return torch.as_tensor(np.array(array))
