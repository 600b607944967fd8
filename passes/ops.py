"""The ``advisor::`` operators: what a quantized graph computes, spelled so that exporters see it.

Importing the module registers them with torch; importing it twice is harmless. They hold narrow
integers unpacked (one int8 or uint8 per element) and compute in float32 with the formulas of
ONNX QuantizeLinear and DequantizeLinear (https://onnx.ai/onnx/operators/): quantize divides by
the scale, rounds half to even and saturates; dequantize subtracts the zero point, then multiplies.
``quantize_dequantize_dynamic`` finds its scales in the tensor itself and gives back floats: what
the integers inside a runtime's kernel stand for. Asymmetric uint8 is ONNX DynamicQuantizeLinear
(https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html), asymmetric int8 what XNNPACK
computes (src/xnnpack/quantization.h in its repository); symmetric, what the kernel behind
com.microsoft MatMulNBits does at accuracy level 4 (measured, onnxruntime 1.31.1).
They have no gradient: a quantized graph is for inference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F

from advisor.errors import UsageError
from advisor.passes import float4

INTEGER_RANGE: Final[dict[str, tuple[int, int]]] = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int2": (-2, 1),
    "ternary": (-1, 1),
}
"""Lowest and highest stored integer of every integer dtype."""

FLOAT4: Final = "fp4"
FLOAT8: Final = {"float8_e4m3": torch.float8_e4m3fn}
"""Eight-bit floats that stand for real numbers with a scale, as integers do, by dtype."""

FLOAT8_MAX: Final = 448.0
"""Largest number of float8_e4m3 (https://arxiv.org/abs/2209.05433, table 1); there is no infinity
in it, and what is larger saturates."""

Operator = Callable[..., torch.Tensor]
"""An operator of torch, as graphs call it."""

GRANULARITIES: Final = ("per-tensor", "per-row", "per-block", "per-sample", "per-pixel")
"""What of a tensor may share a scale that is found at run time."""

_NAMESPACE: Final = "advisor"
_SCHEMAS: Final = {
    "dequantize_affine": "(Tensor q, Tensor scale, Tensor? zero_point, int axis, int block,"
    " str dtype) -> Tensor",
    "dequantize_lut": "(Tensor q, Tensor table, Tensor? scale, int bits) -> Tensor",
    "quantize_static": "(Tensor x, float scale, int zero_point, str dtype) -> Tensor",
    "dequantize_static": "(Tensor q, float scale, int zero_point) -> Tensor",
    "quantize_dequantize_dynamic": "(Tensor x, str dtype, bool symmetric, str granularity,"
    " int block) -> Tensor",
}


def storage_dtype(dtype: str) -> torch.dtype:
    """The torch dtype that holds numbers of ``dtype``, one element each.

    Raises:
        UsageError: neither an integer dtype nor a narrow float.
    """
    if dtype in FLOAT8:
        return FLOAT8[dtype]
    if dtype == FLOAT4:
        return float4.HOLDER
    if dtype not in INTEGER_RANGE:
        known = ", ".join((*INTEGER_RANGE, *FLOAT8, FLOAT4))
        raise UsageError(f"{dtype!r} is not an integer dtype; these are: {known}")
    return torch.uint8 if dtype.startswith("u") else torch.int8


def _spread(table: torch.Tensor, q: torch.Tensor, axis: int, block: int) -> torch.Tensor:
    """Shape scales or zero points so that they broadcast against ``q``."""
    if table.ndim == 0:
        return table
    if not block:
        return table.reshape([-1 if index == axis else 1 for index in range(q.ndim)])
    wide = list(table.shape)
    wide.insert(axis + 1, block)
    spread = table.unsqueeze(axis + 1).expand(wide).flatten(axis, axis + 1)
    return spread.narrow(axis, 0, q.shape[axis])


def _dequantize_affine(
    q: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    axis: int,
    block: int,
    dtype: str,
) -> torch.Tensor:
    storage_dtype(dtype)
    axis = axis % max(q.ndim, 1)
    real = q.to(torch.float32)
    if zero_point is not None:
        real = real - _spread(zero_point.to(torch.float32), q, axis, block)
    return real * _spread(scale.to(torch.float32), q, axis, block)


def _dequantize_affine_fake(
    q: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    axis: int,
    block: int,
    dtype: str,
) -> torch.Tensor:
    return q.new_empty(q.shape, dtype=torch.float32)


def _dequantize_lut(
    q: torch.Tensor, table: torch.Tensor, scale: torch.Tensor | None, bits: int
) -> torch.Tensor:
    real = table.to(torch.float32)
    if scale is not None:
        real = real * scale.to(torch.float32).reshape(-1, 1)
    groups = q.reshape(len(real), -1).to(torch.int64)
    return torch.gather(real, 1, groups).reshape(q.shape)


def _dequantize_lut_fake(
    q: torch.Tensor, table: torch.Tensor, scale: torch.Tensor | None, bits: int
) -> torch.Tensor:
    return q.new_empty(q.shape, dtype=torch.float32)


def _quantize_static(x: torch.Tensor, scale: float, zero_point: int, dtype: str) -> torch.Tensor:
    low, high = INTEGER_RANGE.get(dtype, (0, 0))
    holder = storage_dtype(dtype)
    step = torch.tensor(scale, dtype=torch.float32, device=x.device)
    if dtype in FLOAT8:  # the conversion rounds half to even and does not saturate
        return (x.to(torch.float32) / step).clamp(-FLOAT8_MAX, FLOAT8_MAX).to(holder)
    integers = torch.round(x.to(torch.float32) / step) + float(zero_point)
    return integers.clamp(low, high).to(holder)


def _quantize_static_fake(
    x: torch.Tensor, scale: float, zero_point: int, dtype: str
) -> torch.Tensor:
    return x.new_empty(x.shape, dtype=storage_dtype(dtype))


def _dequantize_static(q: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    step = torch.tensor(scale, dtype=torch.float32, device=q.device)
    return (q.to(torch.float32) - float(zero_point)) * step


def _dequantize_static_fake(q: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    return q.new_empty(q.shape, dtype=torch.float32)


def _quantize_dequantize_dynamic(
    x: torch.Tensor, dtype: str, symmetric: bool, granularity: str, block: int
) -> torch.Tensor:
    low, high = INTEGER_RANGE.get(dtype, (0, 0))
    storage_dtype(dtype)  # refuses what is no integer dtype
    if granularity not in GRANULARITIES or (granularity == "per-block") != (block > 0):
        raise UsageError(
            f"granularity {granularity!r} with block {block}; possible: "
            f"{', '.join(GRANULARITIES)}, and a block above 0 for per-block alone"
        )
    real = x.to(torch.float32)
    width = x.shape[-1]
    match granularity:
        case "per-tensor":
            rows = real.reshape(1, -1)
        case "per-row":
            rows = real.reshape(-1, width)
        case "per-sample":
            rows = real.reshape(x.shape[0], -1)
        case "per-pixel":
            rows = real.movedim(1, -1).reshape(-1, x.shape[1])
        case _:
            rows = F.pad(real, (0, -width % block)).reshape(-1, block)
    if dtype == FLOAT4:
        rounded = _round_float4(rows)
    elif symmetric:
        rounded = _round_symmetric(rows, high)
    elif dtype == "int8":
        rounded = _round_by_product(rows, low, high)
    else:
        rounded = _round_asymmetric(rows, low, high)
    if granularity == "per-block":
        rounded = rounded.reshape(*x.shape[:-1], -1)[..., :width]
    if granularity == "per-pixel":
        rounded = rounded.reshape(x.shape[0], *x.shape[2:], x.shape[1]).movedim(-1, 1)
    return rounded.reshape(x.shape).contiguous()


def _round_float4(rows: torch.Tensor) -> torch.Tensor:
    scale = float4.block_scales(rows.abs().amax(1, keepdim=True), float4.ACTIVATION_UNIT)
    return float4.round_to_float4(float4.divide(rows, scale)) * scale


def _round_symmetric(rows: torch.Tensor, high: int) -> torch.Tensor:
    """scale = max |x| / high. The kernel multiplies by high / max |x|, where division by the
    scale gives another integer at some halves."""
    largest = torch.maximum(rows.amax(1, keepdim=True), -rows.amin(1, keepdim=True))
    # A number divided by a tensor is multiplied by its reciprocal, which rounds twice.
    inverse = torch.full_like(largest, high) / largest
    inverse = torch.where(inverse.isfinite(), inverse, 0.0)  # a row of zeros stays one
    return (rows * inverse).round_().clamp_(-high, high).mul_(largest / high)


def _round_asymmetric(rows: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """scale = (max - min) / (high - low) of the range widened to hold 0; 1 where that is 0."""
    least = rows.amin(1, keepdim=True).clamp_max(0.0)
    scale = (rows.amax(1, keepdim=True).clamp_min(0.0) - least) / (high - low)
    scale = torch.where(scale == 0, 1.0, scale)
    zero_point = (low - least / scale).round_().clamp_(low, high)
    return (rows / scale).round_().add_(zero_point).clamp_(low, high).sub_(zero_point).mul_(scale)


def _round_by_product(rows: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """As ``_round_asymmetric``, but multiplied by the inverse of the scale, which gives another
    integer at some halves, and with the zero point that fits the better of the two ends."""
    least = rows.amin(1, keepdim=True).clamp_max(0.0)
    most = rows.amax(1, keepdim=True).clamp_min(0.0)
    # A number divided by a tensor is multiplied by its reciprocal, which rounds twice.
    inverse = torch.full_like(most, high - low) / (most - least)
    inverse = torch.where(most == least, 1.0, inverse)
    from_least, from_most = least * inverse, most * inverse
    is_least = (low + from_least) + (high + from_most) > 0
    zero_point = torch.where(is_least, low - from_least, high - from_most)
    zero_point = zero_point.clamp_(low, high).round_()
    steps = (rows * inverse).clamp_(low - zero_point, high - zero_point).round_()
    return steps.mul_(torch.ones_like(inverse) / inverse)


def _quantize_dequantize_dynamic_fake(
    x: torch.Tensor, dtype: str, symmetric: bool, granularity: str, block: int
) -> torch.Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


def define(
    qualified: str,
    schema: str,
    kernel: Callable[..., torch.Tensor],
    fake: Callable[..., torch.Tensor],
) -> None:
    """Register one operator "namespace::name". fake: its kernel for tensors without values."""
    torch.library.define(qualified, schema)
    torch.library.impl(qualified, "CompositeExplicitAutograd", kernel)
    library: Any = torch.library  # register_fake's own parameters have no types
    library.register_fake(qualified, fake)


def register() -> None:
    """Make ``torch.ops.advisor.*`` known to torch; does nothing the second time.

    ``torch.library.define`` is used instead of ``custom_op`` because the latter wraps every call
    in a dynamo guard whose marks end up in the metadata of exported nodes.
    """
    if hasattr(torch.ops.advisor, "dequantize_affine"):
        return
    kernels: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = {
        "dequantize_affine": (_dequantize_affine, _dequantize_affine_fake),
        "dequantize_lut": (_dequantize_lut, _dequantize_lut_fake),
        "quantize_static": (_quantize_static, _quantize_static_fake),
        "dequantize_static": (_dequantize_static, _dequantize_static_fake),
        "quantize_dequantize_dynamic": (
            _quantize_dequantize_dynamic,
            _quantize_dequantize_dynamic_fake,
        ),
    }
    for name, (kernel, fake) in kernels.items():
        define(f"{_NAMESPACE}::{name}", _SCHEMAS[name], kernel, fake)


register()

DEQUANTIZE_AFFINE: Final[Operator] = torch.ops.advisor.dequantize_affine.default
"""(q, scale, zero_point, axis, block, dtype) -> float32 of q's shape.

block 0: one scale for all (scale of rank 0) or one per index of ``axis``. block > 0: one per run
of ``block`` elements along ``axis``; scale has q's rank, that axis divided by ``block``.
"""

DEQUANTIZE_LUT: Final[Operator] = torch.ops.advisor.dequantize_lut.default
"""(q, table, scale, bits) -> float32 of q's shape.

q: indices (uint8). table: (tables, 2^bits); each serves an equal run of q's first axis. scale:
one per table where the table holds integers, else None.
"""

QUANTIZE_STATIC: Final[Operator] = torch.ops.advisor.quantize_static.default
"""(x, scale, zero_point, dtype) -> integers of x's shape."""

DEQUANTIZE_STATIC: Final[Operator] = torch.ops.advisor.dequantize_static.default
"""(q, scale, zero_point) -> float32 of q's shape."""

QUANTIZE_DEQUANTIZE_DYNAMIC: Final[Operator] = torch.ops.advisor.quantize_dequantize_dynamic.default
"""(x, dtype, symmetric, granularity, block) -> float32 of x's shape.

granularity: one scale "per-tensor", "per-row" (every vector along the last dimension) or
"per-block" (every run of ``block`` elements of such a vector; the last may be shorter); of images
(N, C, H, W) also "per-sample" (all of one image) or "per-pixel" (the channels of one pixel).
Symmetric integers reach from -high to high, without the lowest one.
"""
