"""Find what can be quantized: every call of an operator with a constant weight, and products of
two activations where a runtime quantizes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from advisor.passes.fx import argument, attribute, constant_value, operator_name
from advisor.passes.graph import Layer, name_of
from advisor.passes.recurrent import GRU, LSTM, LSTM_DYNAMIC, WEIGHTS_AT

aten = torch.ops.aten

LAYER_OPS: Final[dict[Any, str]] = {
    aten.linear.default: "linear",
    aten.conv1d.default: "conv1d",
    aten.conv1d.padding: "conv1d",
    aten.conv2d.default: "conv2d",
    aten.conv2d.padding: "conv2d",
    aten.conv_transpose1d.default: "conv_transpose1d",
    aten.conv_transpose2d.input: "conv_transpose2d",
    aten.embedding.default: "embedding",
    LSTM: "lstm",
    LSTM_DYNAMIC: "lstm",
    GRU: "gru",
}
"""Operators the quantize pass can rewrite. Any other operator with a weight stays float."""

PRODUCT_OPS: Final[dict[Any, str]] = {
    aten.matmul.default: "matmul",
    aten.bmm.default: "matmul",
    aten.mm.default: "matmul",
}
"""Operators that multiply two activations, as in attention."""

SMALLEST_WEIGHT: Final = 2
"""Constants of fewer dimensions (norm gains, biases) are no layer of their own."""

BROADCAST: Final = ("add", "mul", "sub", "div", "expand", "repeat", "cat", "stack")
"""Operators whose constants may have dimensions of size 1 that only serve to broadcast: a class
token of shape (1, 1, width) is a vector."""


def weight_arguments(node: Node) -> tuple[Node, ...]:
    """The weights of a node whose target is in ``LAYER_OPS``; two of a recurrent one."""
    first = 0 if LAYER_OPS[node.target] == "embedding" else 1
    return tuple(argument(node, index) for index in WEIGHTS_AT.get(node.target, (first,)))


def weight_argument(node: Node, layer: Layer) -> Node:
    """The weight of ``layer`` among the arguments of the node that computes it."""
    return next(source for source in weight_arguments(node) if source.target == layer.weight)


def find_calls(module: GraphModule, layers: Iterable[Layer]) -> dict[str, Node]:
    """By layer name the node that computes it; frozen layers have none."""
    nodes = {name_of(node): node for node in module.graph.nodes if can_be_layer(node)}
    return {layer.name: nodes[layer.output] for layer in layers if layer.output in nodes}


def input_argument(node: Node) -> Node:
    """The activation (or the token ids) that a layer reads; the first operand of a product."""
    source: Node = argument(node, 1 if LAYER_OPS.get(node.target) == "embedding" else 0)
    return source


def operands(node: Node) -> tuple[Node, ...]:
    """The activations that a layer reads: one, or both operands of a product."""
    if node.target in PRODUCT_OPS:
        return argument(node, 0), argument(node, 1)
    return (input_argument(node),)


def can_be_layer(node: Node) -> bool:
    """Whether the node calls an operator that layers are made of."""
    return node.target in LAYER_OPS or node.target in PRODUCT_OPS


def find_layers(
    module: GraphModule, shapes: Mapping[str, tuple[int, ...]], *, products: bool = False
) -> tuple[Layer, ...]:
    """Every layer in execution order.

    shapes: by node name, at the deployment's batch, for the multiply-accumulate counts.
    products: whether products of two float32 activations count. A weight read by an operator
    outside ``LAYER_OPS`` gives a layer with ``frozen`` set, so that nothing with weights is ever
    missing from a plan.
    """
    layers: list[Layer] = []
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in WEIGHTS_AT:
            layers.extend(_recurrent_layers(module, node, shapes))
            continue
        weight = _weight_of(module, node) if node.target in LAYER_OPS else None
        if weight is not None:
            layers.append(_layer(module, node, weight, shapes))
        elif products and _is_product(node):
            layers.append(_product(node, shapes))
        else:
            layers.extend(_frozen_layers(module, node, shapes))
    return _share_axes(layers)


def _share_axes(layers: list[Layer]) -> tuple[Layer, ...]:
    """One scale axis for tied layers: the first, which every operator can dequantize along."""
    axes: dict[str, int] = {}
    for layer in layers:
        axes[layer.weight] = min(axes.get(layer.weight, layer.scale_axis), layer.scale_axis)
    return tuple(replace(layer, scale_axis=axes[layer.weight]) for layer in layers)


def _weight_of(module: GraphModule, node: Node) -> torch.Tensor | None:
    value = constant_value(module, weight_arguments(node)[0])
    return value if value is not None and value.is_floating_point() else None


def _layer(
    module: GraphModule, node: Node, weight: torch.Tensor, shapes: Mapping[str, tuple[int, ...]]
) -> Layer:
    op = LAYER_OPS[node.target]
    bias: Any = None if op == "embedding" else argument(node, 2)
    groups = int(argument(node, 6) or 1) if op.startswith("conv") else 1
    is_transposed = op.startswith("conv_transpose")
    # Every element of this tensor meets one row of the weight.
    counted = shapes[input_argument(node).name if is_transposed else node.name]
    return Layer(
        name=name_of(node),
        op=op,
        weight=str(weight_arguments(node)[0].target),
        weight_shape=tuple(weight.shape),
        bias=None if constant_value(module, bias) is None else str(bias.target),
        groups=groups,
        input=name_of(input_argument(node)),
        output=name_of(node),
        macs=0 if op == "embedding" else prod(counted) // max(weight.shape[0], 1) * weight.numel(),
        frozen=None,
        # With groups the outputs' axis has one channel of every group at each index.
        scale_axis=1 if is_transposed and groups == 1 else 0,
        is_pointwise=op == "conv2d" and groups == 1 and _keeps_pixels(node, weight),
    )


def _keeps_pixels(node: Node, weight: torch.Tensor) -> bool:
    """A kernel of one pixel at stride 1; padding only adds pixels of zeros around."""
    return tuple(weight.shape[2:]) == (1, 1) and set(argument(node, 3) or [1]) == {1}


def _is_product(node: Node) -> bool:
    if node.target not in PRODUCT_OPS:
        return False
    values = [operand.meta.get("val") for operand in operands(node)]
    return all(operand.op != "get_attr" for operand in operands(node)) and all(
        isinstance(value, torch.Tensor) and value.dtype == torch.float32 and value.ndim >= 2
        for value in values
    )


def _product(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> Layer:
    first, second = operands(node)
    return Layer(
        name=name_of(node),
        op=PRODUCT_OPS[node.target],
        weight="",
        weight_shape=(),
        bias=None,
        input=name_of(first),
        other=name_of(second),
        output=name_of(node),
        macs=prod(shapes[node.name]) * shapes[first.name][-1],
    )


def _recurrent_layers(
    module: GraphModule, node: Node, shapes: Mapping[str, tuple[int, ...]]
) -> list[Layer]:
    """The input and the recurrent weight of one recurrent node, each named by its own path."""
    x = input_argument(node)
    call = name_of(node).partition("#")[2]
    layers: list[Layer] = []
    for source in weight_arguments(node):
        weight = attribute(module, str(source.target))
        layers.append(
            Layer(
                name=f"{source.target}#{call}" if call else str(source.target),
                op=LAYER_OPS[node.target],
                weight=str(source.target),
                weight_shape=tuple(weight.shape),
                bias=None,
                input=name_of(x),
                output=name_of(node),
                macs=prod(shapes[x.name][:-1]) * weight.numel(),
            )
        )
    return layers


def _frozen_layers(
    module: GraphModule, node: Node, shapes: Mapping[str, tuple[int, ...]]
) -> list[Layer]:
    op = operator_name(node)
    sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
    weights = {
        str(source.target): value
        for source in node.all_input_nodes
        # Buffers are tables that the model computed (masks, positions), not trained weights.
        if isinstance(value := constant_value(module, source), torch.nn.Parameter)
        and value.is_floating_point()
        and value.ndim >= SMALLEST_WEIGHT
        and (op not in BROADCAST or sum(size > 1 for size in value.shape) >= SMALLEST_WEIGHT)
    }
    return [
        Layer(
            name=name_of(node) if len(weights) == 1 else f"{name_of(node)}.{_leaf(target)}",
            op=op,
            weight=target,
            weight_shape=tuple(weight.shape),
            bias=None,
            input=name_of(sources[0]) if sources else target,
            output=name_of(node),
            macs=_frozen_macs(node, op, weight, shapes),
            frozen=f"kept in float: {op} has no quantized form here yet",
        )
        for target, weight in weights.items()
    ]


def _leaf(target: str) -> str:
    return target.rpartition(".")[2]


def _frozen_macs(
    node: Node, op: str, weight: torch.Tensor, shapes: Mapping[str, tuple[int, ...]]
) -> int:
    """Multiply-accumulates with one weight of an operator outside ``LAYER_OPS``."""
    sources = [
        shapes[n.name] for n in node.all_input_nodes if n.op != "get_attr" and n.name in shapes
    ]
    source = sources[0] if sources else ()
    if op.startswith("conv_transpose"):  # every input element meets one row of the weight
        return prod(source) * weight.numel() // max(weight.shape[0], 1)
    if op.startswith("conv"):  # every output element meets one row of the weight
        return prod(shapes[node.name]) * weight.numel() // max(weight.shape[0], 1)
    if op in ("lstm", "gru", "rnn_tanh", "rnn_relu", "bilinear"):
        return prod(source[:-1]) * weight.numel()
    if op in ("matmul", "mm", "bmm"):
        return prod(shapes[node.name]) * weight.shape[-2]
    return 0
