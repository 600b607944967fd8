"""Torch stand-ins for ONNX Runtime operators, and how every custom operator becomes ONNX.

The stand-ins live in the namespace ``advisor_ort`` and compute the same numbers in torch, so that
a legalised graph still runs and can be held against the quantized graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

from advisor.passes import ops

MICROSOFT: Final = "com.microsoft"
"""Domain of ONNX Runtime's own operators (docs/ContribOperators.md in its repository)."""

ONNX_INTEGERS: Final = {"uint8": 2, "int8": 3, "uint4": 21, "int4": 22, "int2": 26}
"""onnx.TensorProto.DataType of the integer dtypes."""


def _gather_block_quantized(
    q: torch.Tensor, ids: torch.Tensor, scale: torch.Tensor, block: int, dtype: str, columns: bool
) -> torch.Tensor:
    rows, scales = (q.t(), scale.t()) if columns else (q, scale)
    return ops.DEQUANTIZE_AFFINE(
        torch.nn.functional.embedding(ids, rows),
        torch.nn.functional.embedding(ids, scales),
        None,
        ids.ndim,
        block,
        dtype,
    )


def _gather_block_quantized_fake(
    q: torch.Tensor, ids: torch.Tensor, scale: torch.Tensor, block: int, dtype: str, columns: bool
) -> torch.Tensor:
    width = q.shape[0] if columns else q.shape[1]
    return scale.new_empty((*ids.shape, width), dtype=torch.float32)


def _gather_columns(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.embedding(ids, table.t())


def _gather_columns_fake(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return table.new_empty((*ids.shape, table.shape[0]))


def _fence(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


def _fence_fake(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def register() -> None:
    """Make ``torch.ops.advisor_ort.*`` known to torch; does nothing the second time."""
    if hasattr(torch.ops.advisor_ort, "gather_block_quantized"):
        return
    kernels: dict[str, tuple[str, Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = {
        "gather_block_quantized": (
            "(Tensor q, Tensor ids, Tensor scale, int block, str dtype, bool columns) -> Tensor",
            _gather_block_quantized,
            _gather_block_quantized_fake,
        ),
        "gather_columns": (
            "(Tensor table, Tensor ids) -> Tensor",
            _gather_columns,
            _gather_columns_fake,
        ),
        "fence": ("(Tensor x) -> Tensor", _fence, _fence_fake),
        "barrier": ("(Tensor x) -> Tensor", _fence, _fence_fake),
    }
    for name, (schema, kernel, fake) in kernels.items():
        ops.define(f"advisor_ort::{name}", schema, kernel, fake)


register()

GATHER_BLOCK_QUANTIZED: Final[ops.Operator] = torch.ops.advisor_ort.gather_block_quantized.default
"""(q (V, D), ids, scale (V, D / block), block, dtype, columns) -> float32 (\\*ids, D).

columns: both tables are stored transposed, because a linear layer shares them.
"""

GATHER_COLUMNS: Final[ops.Operator] = torch.ops.advisor_ort.gather_columns.default
"""(table (D, V), ids) -> (\\*ids, D): an embedding whose table is stored transposed."""

FENCE: Final[ops.Operator] = torch.ops.advisor_ort.fence.default
"""(x) -> x, unchanged: a Reshape, free of cost, that ONNX Runtime does not fuse across."""

BARRIER: Final[ops.Operator] = torch.ops.advisor_ort.barrier.default
"""(x) -> x, unchanged: a Max of one tensor, one copy, that no DequantizeLinear is moved across."""


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """``custom_translation_table`` of torch.onnx.export: every custom operator in ONNX terms.

    Integers leave here as int8; ``tidy`` gives narrow ones their packed type afterwards.
    """
    import onnxscript

    op: Any = onnxscript.opset21  # its signatures describe ONNX types, not tracing

    gather = _gather_block_quantized_in_onnx()

    def dequantize_affine(
        q: Any, scale: Any, zero_point: Any, axis: int, block: int, dtype: str
    ) -> Any:
        inputs = (q, scale) if zero_point is None else (q, scale, zero_point)
        if block:
            return op.DequantizeLinear(*inputs, axis=axis, block_size=block)
        return op.DequantizeLinear(*inputs, axis=axis)

    def quantize_static(x: Any, scale: float, zero_point: int, dtype: str) -> Any:
        zero = op.Cast(op.Constant(value_int=zero_point), to=ONNX_INTEGERS[dtype])
        return op.QuantizeLinear(x, op.Constant(value_float=scale), zero)

    def dequantize_static(q: Any, scale: float, zero_point: int) -> Any:
        zero = op.CastLike(op.Constant(value_int=zero_point), q)
        return op.DequantizeLinear(q, op.Constant(value_float=scale), zero)

    def first_axis_last(columns: Any, ids: Any) -> Any:
        return op.Transpose(columns, perm=[*range(1, len(ids.shape) + 1), 0])

    def gather_block_quantized(
        q: Any, ids: Any, scale: Any, block: int, dtype: str, columns: bool
    ) -> Any:
        axes = (1, 0) if columns else (0, 1)
        rows = gather(q, ids, scale, gather_axis=axes[0], quantize_axis=axes[1], block_size=block)
        return first_axis_last(rows, ids) if columns else rows

    def gather_columns(table: Any, ids: Any) -> Any:
        return first_axis_last(op.Gather(table, ids, axis=1), ids)

    def fence(x: Any) -> Any:
        shape = [0] * (len(x.shape) - 1) + [-1]  # 0 keeps a dimension
        return op.Reshape(x, op.Constant(value_ints=shape))

    return {
        ops.DEQUANTIZE_AFFINE: dequantize_affine,
        ops.QUANTIZE_STATIC: quantize_static,
        ops.DEQUANTIZE_STATIC: dequantize_static,
        GATHER_BLOCK_QUANTIZED: gather_block_quantized,
        GATHER_COLUMNS: gather_columns,
        FENCE: fence,
        BARRIER: op.Max,
    }


def _gather_block_quantized_in_onnx() -> Callable[..., Any]:
    """The operator as onnxscript calls it; the onnx package has no schema of its domain."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    types = ["tensor(int8)", "tensor(uint8)", "tensor(int4)", "tensor(uint4)"]
    schema = OpSchema(
        "GatherBlockQuantized",
        MICROSOFT,
        1,
        inputs=[
            OpSchema.FormalParameter("data", "T1"),
            OpSchema.FormalParameter("indices", "Tind"),
            OpSchema.FormalParameter("scales", "T2"),
        ],
        outputs=[OpSchema.FormalParameter("output", "T2")],
        type_constraints=[
            ("T1", types, ""),
            ("Tind", ["tensor(int32)", "tensor(int64)"], ""),
            ("T2", ["tensor(float)"], ""),
        ],
        attributes=[
            OpSchema.Attribute(name, OpSchema.AttrType.INT)
            for name in ("gather_axis", "quantize_axis", "block_size", "bits")
        ],
    )
    return Op(Opset(MICROSOFT, 1), "GatherBlockQuantized", schema)
