"""Find what can be quantized: every call of an operator with a constant weight."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from advisor.passes.fx import constant_value
from advisor.passes.graph import Layer, name_of

aten = torch.ops.aten

LAYER_OPS: Final[dict[Any, str]] = {
    aten.linear.default: "linear",
    aten.conv1d.default: "conv1d",
    aten.conv1d.padding: "conv1d",
    aten.conv2d.default: "conv2d",
    aten.conv2d.padding: "conv2d",
    aten.embedding.default: "embedding",
}
"""Operators the quantize pass can rewrite. Any other operator with a weight stays float."""

SMALLEST_WEIGHT: Final = 2
"""Constants of fewer dimensions (norm gains, biases) are no layer of their own."""


def weight_argument(node: Node) -> Node:
    """The weight of a node whose target is in ``LAYER_OPS``."""
    index = 0 if LAYER_OPS[node.target] == "embedding" else 1
    weight = node.args[index]
    assert isinstance(weight, Node)  # find_layers only lists nodes where it is one
    return weight


def input_argument(node: Node) -> Node:
    """The activation (or the token ids) that a layer reads."""
    index = 1 if LAYER_OPS[node.target] == "embedding" else 0
    source = node.args[index]
    assert isinstance(source, Node)
    return source


def find_layers(module: GraphModule, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Layer, ...]:
    """Every layer in execution order.

    shapes: by node name, at the deployment's batch, for the multiply-accumulate counts.
    A weight read by an operator outside ``LAYER_OPS`` gives a layer with ``frozen`` set, so that
    nothing with weights is ever missing from a plan.
    """
    layers: list[Layer] = []
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in LAYER_OPS and _weight_of(module, node) is not None:
            layers.append(_layer(module, node, shapes))
        else:
            layers.extend(_frozen_layers(module, node, shapes))
    return tuple(layers)


def _weight_of(module: GraphModule, node: Node) -> torch.Tensor | None:
    index = 0 if LAYER_OPS[node.target] == "embedding" else 1
    value = constant_value(module, node.args[index])
    return value if value is not None and value.is_floating_point() else None


def _layer(module: GraphModule, node: Node, shapes: Mapping[str, tuple[int, ...]]) -> Layer:
    op = LAYER_OPS[node.target]
    weight_node = weight_argument(node)
    weight = constant_value(module, weight_node)
    assert weight is not None  # the caller checked
    has_bias = op != "embedding" and len(node.args) > 2 and node.args[2] is not None
    bias = node.args[2] if has_bias else None
    positions = prod(shapes[node.name]) // max(weight.shape[0], 1)
    return Layer(
        name=name_of(node),
        op=op,
        weight=str(weight_node.target),
        weight_shape=tuple(weight.shape),
        bias=str(bias.target) if isinstance(bias, Node) and bias.op == "get_attr" else None,
        groups=_groups(node) if op.startswith("conv") else 1,
        input=name_of(input_argument(node)),
        output=name_of(node),
        macs=0 if op == "embedding" else positions * weight.numel(),
        frozen=None,
    )


def _groups(node: Node) -> int:
    groups = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
    return int(groups)  # type: ignore[arg-type]  # the schema says int


def _frozen_layers(
    module: GraphModule, node: Node, shapes: Mapping[str, tuple[int, ...]]
) -> list[Layer]:
    found: list[Layer] = []
    operator = getattr(node.target, "_schema", None)
    op = operator.name.split("::")[-1] if operator is not None else node.name
    for argument in node.all_input_nodes:
        weight = constant_value(module, argument)
        if weight is None or weight.ndim < SMALLEST_WEIGHT or not weight.is_floating_point():
            continue
        if str(argument.target).startswith("folded."):
            continue  # a mask or position table computed by the model, not a trained weight
        if len([size for size in weight.shape if size > 1]) < SMALLEST_WEIGHT:
            continue
        several = sum(constant_value(module, other) is not None for other in node.all_input_nodes)
        leaf = str(argument.target).rpartition(".")[2]
        found.append(
            Layer(
                name=f"{name_of(node)}.{leaf}" if several > 1 else name_of(node),
                op=op,
                weight=str(argument.target),
                weight_shape=tuple(weight.shape),
                bias=None,
                input=name_of(node.all_input_nodes[0]),
                output=name_of(node),
                macs=_frozen_macs(node, op, weight, shapes),
                frozen=f"kept in float: {op} has no quantized form here yet",
            )
        )
    return found


def _frozen_macs(
    node: Node, op: str, weight: torch.Tensor, shapes: Mapping[str, tuple[int, ...]]
) -> int:
    """Multiply-accumulates of a weight outside ``LAYER_OPS``; element-wise use costs none here."""
    if op in ("add", "mul", "sub", "div") or node.name not in shapes:
        return 0
    source = shapes.get(node.all_input_nodes[0].name, ())
    if op.startswith("conv_transpose"):
        return prod(source) * weight.numel() // max(weight.shape[0], 1)
    return prod(source[:-1]) * weight.numel()
