"""Single-layer arithmetic: run a layer on given input and weight, and turn tables into floats."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch.fx import Node

from advisor.formats import PerBlock, PerChannel, TensorFormat
from advisor.passes.batching import Place, join_samples, split_samples
from advisor.passes.graph import WeightTable
from advisor.passes.layers import LAYER_OPS
from advisor.passes.ops import QUANTIZE_DEQUANTIZE_DYNAMIC
from advisor.targets.capability import DynamicRules


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
    if table.scale is None and table.table is None:
        return table.values.float().reshape(shape)
    if table.table is not None:
        looked_up: torch.Tensor = torch.ops.advisor.dequantize_lut(
            table.values, table.table, table.scale, fmt.bits
        )
        return looked_up.reshape(shape)
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


def quantize_dequantize_dynamic(x: torch.Tensor, rules: DynamicRules) -> torch.Tensor:
    """A tensor after quantization with scales of its own and back."""
    return QUANTIZE_DEQUANTIZE_DYNAMIC(
        x, rules.dtype, rules.symmetric, rules.granularity, rules.block
    )


def dynamic_rules(node: Node) -> DynamicRules:
    """What a node of ``advisor::quantize_dequantize_dynamic`` does."""
    _, dtype, symmetric, granularity, block = cast("tuple[Node, str, bool, str, int]", node.args)
    return DynamicRules(dtype=dtype, symmetric=symmetric, granularity=granularity, block=block)


def quantize_dequantize_samples(
    x: torch.Tensor, rules: DynamicRules, *, place: Place | None, samples: int, batch: int
) -> torch.Tensor:
    """The same for many samples at once, as if they came in batches of ``batch``.

    Only rules that couple samples make a difference. place: where the samples are in ``x``; None
    for a tensor that does not hold them apart, whose scale is then of the whole.
    """
    if not rules.couples_samples or place is None or batch >= samples:
        return quantize_dequantize_dynamic(x, rules)
    rows = split_samples(x, place, samples)
    whole = samples // batch * batch
    by_batch = replace(rules, granularity="per-row")
    parts = [quantize_dequantize_dynamic(rows[:whole].reshape(whole // batch, -1), by_batch)]
    if whole < samples:
        parts.append(quantize_dequantize_dynamic(rows[whole:], rules))
    rounded = torch.cat([part.reshape(-1, rows.shape[1]) for part in parts])
    return join_samples(rounded, place, x.shape)
