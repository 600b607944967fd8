"""Spell attention as the two products that it is, for runtimes that quantize products.

Everywhere else ``scaled_dot_product_attention`` stays whole, because runtimes fuse it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node, map_arg

from advisor.passes.fx import (
    argument,
    clone,
    constant_value,
    finish,
    flatten_inputs,
    free_name,
    read_constant,
    set_constant,
    stamp,
)
from advisor.passes.graph import Graph, name_of
from advisor.passes.layers import find_layers
from advisor.passes.shapes import infer_shapes
from advisor.passes.verify import verify

aten = torch.ops.aten
ATTENTION: Final = aten.scaled_dot_product_attention.default
HIDDEN: Final = torch.finfo(torch.float32).min
"""Added to the score of a hidden position. Its exponential is 0, as that of -inf, but a row of
nothing else does not become NaN."""


def open_products(graph: Graph) -> Graph:
    """Count every product of two activations as a layer, those inside attention included.

    Given: a captured graph. Result: no attention is left whole (except one with dropout or in
    another dtype than float32), and ``Graph.products`` holds.
    """
    module = expand_attention(graph.module)
    infos = infer_shapes(module, flatten_inputs(module, graph.args, graph.kwargs))
    shapes = {name: info.shape for name, info in infos.items()}
    layers = find_layers(module, shapes, products=True)
    opened = replace(graph, module=module, layers=layers, products=True)
    verify(opened)
    return opened


def expand_attention(module: GraphModule) -> GraphModule:
    """softmax(q kᵀ · scale + mask) v in place of ``scaled_dot_product_attention``.

    Given: a normalised graph. Result: the definition in torch's documentation of the operator
    (https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html),
    with zeros for a query to which the mask hides every key, as torch computes it. The products
    are called ``<name>.qk`` and ``<name>.pv``. Layers that share a mask share what is made of it.
    """
    module = clone(module)
    masks: dict[Any, _Mask] = {}
    for node in list(module.graph.find_nodes(op="call_function", target=ATTENTION)):
        if _is_plain(node):
            _expand(module, node, masks)
    return finish(module)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mask:
    """bias: added to the scores. sees: 1 for queries that see some key, else 0; None: all do."""

    bias: Node
    sees: Node | None = None


def _option(node: Node, index: int, name: str, default: Any) -> Any:
    found = argument(node, index) if len(node.args) > index else node.kwargs.get(name)
    return default if found is None else found


def _is_plain(node: Node) -> bool:
    values = [operand.meta["val"] for operand in node.args[:3] if isinstance(operand, Node)]
    return not _option(node, 4, "dropout_p", 0.0) and all(v.dtype == torch.float32 for v in values)


class _Writer:
    """Adds calls before one attention, named and placed like it."""

    def __init__(self, module: GraphModule, attention: Node) -> None:
        self.module = module
        self.attention = attention
        self.prefix = name_of(attention).replace("scaled_dot_product_attention", "sdpa")
        self.mode = attention.meta["val"].fake_mode

    def call(self, name: str, target: Any, *args: Any, **kwargs: Any) -> Node:
        with self.module.graph.inserting_before(self.attention):
            node = self.module.graph.call_function(target, args, kwargs)
        for key in ("nn_module_stack", "stack_trace"):
            if key in self.attention.meta:
                node.meta[key] = self.attention.meta[key]
        with self.mode:
            node.meta["val"] = target(*map_arg(args, self._value), **kwargs)
        return stamp(node, made_by="expand_attention", name=f"{self.prefix}.{name}")

    def constant(self, name: str, value: torch.Tensor) -> Node:
        target = set_constant(self.module, free_name(self.module, f"{self.prefix}.{name}"), value)
        node = read_constant(self.module, self.attention, target)
        return stamp(node, made_by="expand_attention", name=target)

    def _value(self, node: Node) -> Any:
        value = node.meta["val"]
        is_real = type(value) is torch.Tensor or type(value) is torch.nn.Parameter
        return self.mode.from_tensor(value) if is_real else value


def _expand(module: GraphModule, node: Node, masks: dict[Any, _Mask]) -> None:
    writer = _Writer(module, node)
    query, key, value = (argument(node, index) for index in range(3))
    width = query.meta["val"].shape[-1]
    if _option(node, 7, "enable_gqa", False):
        heads = query.meta["val"].shape[-3]
        key = _repeat(writer, "keys", key, heads)
        value = _repeat(writer, "values", value, heads)
    mask = _mask_of(writer, node, query, key, masks)
    # Scaling the query touches fewer numbers than scaling the scores.
    scale = _option(node, 6, "scale", width**-0.5)
    scaled = writer.call("scaled", aten.mul.Tensor, query, float(scale))
    turned = writer.call("k", aten.transpose.int, key, -2, -1)
    scores = writer.call("qk", aten.matmul.default, scaled, turned)
    if mask is not None:
        scores = writer.call("masked", aten.add.Tensor, scores, mask.bias)
    shares = writer.call("softmax", aten.softmax.int, scores, -1)
    result = writer.call("pv", aten.matmul.default, shares, value)
    if mask is not None and mask.sees is not None:
        result = writer.call("seen", aten.mul.Tensor, result, mask.sees)
    node.replace_all_uses_with(result)
    module.graph.erase_node(node)


def _repeat(writer: _Writer, name: str, operand: Node, heads: int) -> Node:
    """Every head of keys or values as often as there are query heads for it, in a row."""
    shape = operand.meta["val"].shape
    if shape[-3] == heads:
        return operand
    dim = len(shape) - 2
    wide = writer.call(f"{name}.wide", aten.unsqueeze.default, operand, dim)
    sizes = [-1] * (len(shape) + 1)
    sizes[dim] = heads // shape[-3]
    spread = writer.call(f"{name}.spread", aten.expand.default, wide, sizes)
    return writer.call(f"{name}.heads", aten.flatten.using_ints, spread, dim - 1, dim)


def _mask_of(
    writer: _Writer, node: Node, query: Node, key: Node, masks: dict[Any, _Mask]
) -> _Mask | None:
    """The mask of one attention, made once for all that have the same."""
    given = _option(node, 3, "attn_mask", None)
    is_causal = bool(_option(node, 5, "is_causal", False))
    if given is None and not is_causal:
        return None
    sizes = [operand.meta["val"].shape[-2] for operand in (query, key)]
    known = given if isinstance(given, Node) else tuple(str(size) for size in sizes)
    if known not in masks:
        if given is None:
            masks[known] = _causal(writer, query, key)
        else:
            fixed = constant_value(writer.module, given)
            masks[known] = _computed(writer, given) if fixed is None else _fixed(writer, fixed)
    return masks[known]


def _causal(writer: _Writer, query: Node, key: Node) -> _Mask:
    """Query i sees keys 0 to i."""
    sizes = [operand.meta["val"].shape[-2] for operand in (query, key)]
    if all(isinstance(size, int) for size in sizes):
        return _fixed(writer, torch.ones(sizes, dtype=torch.bool).tril())
    rows = writer.call("row", aten.unsqueeze.default, _positions(writer, "queries", query), 1)
    seen = writer.call("causal", aten.ge.Tensor, rows, _positions(writer, "keys", key))
    return _Mask(bias=_bias(writer, seen))  # every query sees the first key


def _positions(writer: _Writer, name: str, operand: Node) -> Node:
    shape = operand.meta["val"].shape
    size: Any = shape[-2]
    if not isinstance(size, int):
        size = writer.call(f"{name}.length", aten.sym_size.int, operand, len(shape) - 2)
    return writer.call(name, aten.arange.default, size)


def _fixed(writer: _Writer, mask: torch.Tensor) -> _Mask:
    """A mask whose values are known: everything made of it is a constant."""
    is_bool = mask.dtype == torch.bool
    bias = torch.where(mask, 0.0, HIDDEN) if is_bool else mask.clamp(min=HIDDEN)
    seen = (mask if is_bool else mask > -torch.inf).any(dim=-1, keepdim=True)
    return _Mask(
        bias=writer.constant("bias", bias),
        sees=None if bool(seen.all()) else writer.constant("sees", seen.float()),
    )


def _computed(writer: _Writer, mask: Node) -> _Mask:
    if mask.meta["val"].dtype == torch.bool:
        seen, bias = mask, _bias(writer, mask)
    else:
        seen = writer.call("finite", aten.gt.Scalar, mask, -torch.inf)
        bias = writer.call("bias", aten.clamp.default, mask, HIDDEN)
    any_seen = writer.call("any", aten.any.dim, seen, -1, True)
    sees = writer.call("sees", aten._to_copy.default, any_seen, dtype=torch.float32)
    return _Mask(bias=bias, sees=sees)


def _bias(writer: _Writer, seen: Node) -> Node:
    """0 where a key is seen, ``HIDDEN`` elsewhere."""
    hidden = writer.call("hidden", aten.logical_not.default, seen)
    return writer.call(
        "bias",
        aten.mul.Tensor,
        writer.call("hides", aten._to_copy.default, hidden, dtype=torch.float32),
        HIDDEN,
    )
