"""Bring a captured graph into the one form that everything downstream relies on.

Each pass takes a GraphModule and returns a new one that shares its tensors; ``PIPELINE`` lists
them in order. Legal input: functional ATen from ``passes.capture``. ``passes.verify`` states what
a legal result is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node, map_arg

from advisor.passes.fx import (
    attribute,
    clone,
    constant_value,
    copy_meta,
    finish,
    insert_constant,
    stamp,
)
from advisor.passes.names import name_nodes

aten = torch.ops.aten
Pass = Callable[[GraphModule], GraphModule]

NO_OPS: Final = frozenset(
    {
        aten.clone.default,
        aten.alias.default,
        aten.detach.default,
        aten.dropout.default,
        aten.lift_fresh_copy.default,
        aten.contiguous.default,
    }
)
RANDOM: Final = ("rand", "dropout", "bernoulli", "multinomial", "normal")
SLICE_END: Final = 2**63 - 1


def unify_tied(module: GraphModule) -> GraphModule:
    """One name per tensor.

    Given: ``get_attr`` nodes, some naming the same tensor (tied weights) under several paths.
    Result: all of them name it by the first path; equal values in different tensors stay apart.
    """
    module = clone(module)
    first: dict[tuple[Any, ...], str] = {}
    for node in module.graph.nodes:
        value = constant_value(module, node)
        if value is not None:
            key = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
            if value.numel():
                node.target = first.setdefault(key, str(node.target))
    return finish(module)


def remove_noops(module: GraphModule) -> GraphModule:
    """Drop operators that return their input.

    Given: clones, aliases, inference dropouts, full slices, metadata assertions.
    Result: their users read their input.
    """
    module = clone(module)
    for node in list(module.graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
        elif node.target in NO_OPS or _is_full_slice(node):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    return finish(module)


def fold_constants(module: GraphModule) -> GraphModule:
    """Compute once what depends on no input.

    Given: subgraphs over weights and literals only (masks, positions, batch-norm factors).
    Result: a buffer in place of each such subgraph's last node.
    """
    module = clone(module)
    values: dict[Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            values[node] = attribute(module, str(node.target))
        elif _is_foldable(node, values):
            with torch.no_grad():
                args = map_arg(node.args, lambda n: values[n])
                kwargs = map_arg(node.kwargs, lambda n: values[n])
                values[node] = node.target(*args, **kwargs)
    for node in list(module.graph.nodes):
        value = values.get(node)
        if node.op != "call_function" or not isinstance(value, torch.Tensor):
            continue
        if all(user in values for user in node.users):
            continue
        constant = insert_constant(module, node, f"folded.{node.name}", value.contiguous())
        copy_meta(node, stamp(constant, made_by="fold_constants"))
        node.replace_all_uses_with(constant, delete_user_cb=lambda user: user not in values)
    return finish(module)


def canonicalise_linear(module: GraphModule) -> GraphModule:
    """One spelling for a product with a constant matrix.

    Given: addmm(bias, x, w), mm(x, w), matmul(x, w) with a constant two-dimensional w of (in, out).
    Result: linear(x, w transposed, bias).
    """
    module = clone(module)
    for node in list(module.graph.nodes):
        parts = _linear_parts(node)
        if parts is None:
            continue
        x, weight, bias = parts
        value = constant_value(module, weight)
        if value is None or value.ndim != 2 or (bias is not None and not _is_vector(module, bias)):
            continue
        target = f"{weight.target}_transposed"
        transposed = insert_constant(module, node, target, value.t().contiguous())
        with module.graph.inserting_before(node):
            linear = module.graph.call_function(aten.linear.default, (x, transposed, bias))
        copy_meta(node, linear)
        stamp(linear, made_by="canonicalise_linear")
        node.replace_all_uses_with(linear)
        module.graph.erase_node(node)
    return finish(module)


def fold_affine(module: GraphModule) -> GraphModule:
    """Move a per-channel factor or shift into the convolution or linear before it.

    Given: conv or linear, read only by mul(·, constant) or add(·, constant) with one value per
    output channel (what batch norm has become).
    Result: the constant is inside weight and bias.
    """
    module = clone(module)
    for node in list(module.graph.nodes):
        if node.target not in (aten.mul.Tensor, aten.add.Tensor) or node.kwargs:
            continue
        layer, factor = _layer_and_factor(module, node)
        if layer is None or factor is None:
            continue
        weight = constant_value(module, layer.args[1])
        bias = constant_value(module, layer.args[2]) if len(layer.args) > 2 else None
        assert weight is not None  # _layer_and_factor checked it
        scaled = node.target is aten.mul.Tensor
        arguments = list(layer.args) + [None] * (3 - len(layer.args))
        if scaled:
            per_output = factor.reshape([-1] + [1] * (weight.ndim - 1))
            path = str(layer.args[1].target)
            arguments[1] = insert_constant(module, layer, path, weight * per_output)
        if bias is not None or not scaled:
            shift = factor if bias is None else (bias * factor if scaled else bias + factor)
            path = str(layer.args[1].target).rpartition(".")[0]
            arguments[2] = insert_constant(module, layer, f"{path}.bias".lstrip("."), shift)
        layer.args = tuple(arguments)
        stamp(layer, made_by="fold_affine")
        node.replace_all_uses_with(layer)
        module.graph.erase_node(node)
    return finish(module)


PIPELINE: Final[tuple[Pass, ...]] = (
    unify_tied,
    remove_noops,
    fold_constants,
    canonicalise_linear,
    fold_affine,
    name_nodes,
)


def normalise(module: GraphModule) -> GraphModule:
    """Run the whole ``PIPELINE``."""
    for step in PIPELINE:
        module = step(module)
    return module


def _is_full_slice(node: Node) -> bool:
    if node.target is not aten.slice.Tensor:
        return False
    _, _, start, end, step = (*node.args, *(None, 0, None, None, 1)[len(node.args) :])
    return start in (None, 0) and end in (None, SLICE_END) and step == 1


def _is_foldable(node: Node, values: dict[Node, Any]) -> bool:
    if node.op != "call_function" or any(word in str(node.target) for word in RANDOM):
        return False
    return all(argument in values for argument in node.all_input_nodes)


def _linear_parts(node: Node) -> tuple[Any, Node, Any] | None:
    if node.target is aten.addmm.default and not node.kwargs:
        bias, x, weight = node.args
    elif node.target in (aten.mm.default, aten.matmul.default):
        (x, weight), bias = node.args, None
    else:
        return None
    return (x, weight, bias) if isinstance(weight, Node) else None


def _is_vector(module: GraphModule, node: Any) -> bool:
    value = constant_value(module, node)
    return value is not None and value.ndim == 1


def _layer_and_factor(
    module: GraphModule, node: Node
) -> tuple[Node, torch.Tensor] | tuple[None, None]:
    """The foldable layer and its constant of shape (out,), for mul or add of the two."""
    for layer, other in (node.args[:2], node.args[1::-1]):
        factor = constant_value(module, other)
        if factor is None or not isinstance(layer, Node) or len(layer.users) != 1:
            continue
        channel_dim = {
            aten.linear.default: -1,
            aten.conv1d.default: -2,
            aten.conv2d.default: -3,
        }.get(layer.target)  # type: ignore[arg-type]  # any target may be looked up
        weight = constant_value(module, layer.args[1]) if channel_dim else None
        if channel_dim is None or weight is None:
            continue
        outputs = weight.shape[0]
        aligned = factor.ndim >= -channel_dim and factor.shape[channel_dim] == outputs
        if aligned and factor.numel() == outputs and factor.dtype == weight.dtype:
            return layer, factor.reshape(-1)
    return None, None
