"""Constants of a program, and weights that are expanded when the model is loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from advisor.targets.storedweight import Weight, unpack_bits

BLOCKWISE = "constexpr_blockwise_shift_scale"
AFFINE = "constexpr_affine_dequantize"
LOOKUP = "constexpr_lut_to_dense"


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
        values = unpack_bits(np.asarray(op.inputs["indices"].val), bits, int(np.prod(shape)))
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
