"""Single-layer arithmetic: run a layer on given input and weight, and turn tables into floats."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from advisor.formats import PerBlock, PerChannel, TensorFormat
from advisor.passes import ops as _ops
from advisor.passes.graph import WeightTable
from advisor.passes.layers import LAYER_OPS

__all__ = ["dequantize", "quantize_dequantize", "run_layer", "run_product"]
_ = _ops  # registers the advisor:: operators


def run_layer(node: Node, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The layer's operator on ``x`` with ``weight`` and no bias."""
    arguments: list[Any] = list(node.args)
    if LAYER_OPS[node.target] == "embedding":
        arguments[:2] = [weight, x]
    else:
        arguments[:2] = [x, weight]
        if len(arguments) > 2:
            arguments[2] = None
    operator: Any = node.target
    result: torch.Tensor = operator(*arguments, **node.kwargs)
    return result


def run_product(node: Node, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """A product's operator on two other operands."""
    operator: Any = node.target
    result: torch.Tensor = operator(first, second)
    return result


def dequantize_arguments(fmt: TensorFormat) -> tuple[int, int, str]:
    """axis, block and dtype arguments of ``advisor::dequantize_affine`` for a weight format."""
    match fmt.granularity:
        case PerChannel(axis=axis):
            return axis, 0, fmt.dtype
        case PerBlock(size=size):
            return 1, size, fmt.dtype
        case _:
            return 0, 0, fmt.dtype


def dequantize(table: WeightTable, fmt: TensorFormat, shape: tuple[int, ...]) -> torch.Tensor:
    """The float32 weight that a table stands for, in the layer's shape."""
    if table.scale is None:
        return table.values.float().reshape(shape)
    axis, block, dtype = dequantize_arguments(fmt)
    restored: torch.Tensor = torch.ops.advisor.dequantize_affine(
        table.values, table.scale, table.zero_point, axis, block, dtype
    )
    return restored.reshape(shape)


def quantize_dequantize(x: torch.Tensor, scale: float, zero_point: int, dtype: str) -> torch.Tensor:
    """A tensor after static quantization and back."""
    q = torch.ops.advisor.quantize_static(x, scale, zero_point, dtype)
    restored: torch.Tensor = torch.ops.advisor.dequantize_static(q, scale, zero_point)
    return restored
