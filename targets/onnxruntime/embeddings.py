"""Embeddings of quantized tables: gather first, dequantize only what was gathered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from advisor.errors import UnsupportedError
from advisor.passes import ops
from advisor.passes.graph import name_of
from advisor.targets.onnxruntime.nodes import (
    Context,
    Stored,
    as_node,
    derived_constant,
    layers_of,
    mark,
    readers_of,
    replace_layer,
    stored_of,
    tensor_of,
    transposed_constant,
)
from advisor.targets.onnxruntime.operators import GATHER_BLOCK_QUANTIZED, GATHER_COLUMNS

aten = torch.ops.aten

CASTS: Final = frozenset({aten._to_copy.default, aten.to.dtype})
GATHER_BITS: Final = frozenset({"int4", "int2"})
"""Embedding tables that ONNX's own Gather cannot read, so ONNX Runtime's operator does."""

SMALLEST_GATHER_BLOCK: Final = 16
"""GatherBlockQuantized wants a power of two from 16 up (checked by its shape inference)."""


def gather_embeddings(module: GraphModule, context: Context) -> GraphModule:
    """Given embeddings of dequantized tables. Result: only the rows read are dequantized.

    int8: Gather of integers, Gather of scales, one DequantizeLinear. Four and two bits: one
    GatherBlockQuantized. float16: Gather, then a cast. A table that a linear layer shares is
    kept transposed, as that layer needs it, so that its bytes are stored once: as one constant
    where that layer is static, else as two constants in one place of the weight file.
    """
    for node, weight in layers_of(module):
        if node.target is not aten.embedding.default:
            continue
        ids = as_node(node.args[1])
        stored = stored_of(weight)
        with module.graph.inserting_before(node):
            if stored is not None:
                rows = _gather_integers(module, node, stored, ids, context)
            elif weight.target in CASTS:
                gathered = module.graph.call_function(aten.embedding.default, (weight.args[0], ids))
                mark(gathered, name_of(node), "weight")
                rows = module.graph.call_function(
                    _target(weight), (gathered, *weight.args[1:]), dict(weight.kwargs)
                )
            else:
                continue
        replace_layer(node, rows, "op")
    return module


def _gather_integers(
    module: GraphModule, node: Node, stored: Stored, ids: Node, context: Context
) -> Node:
    name = name_of(node)
    if stored.zero_point is not None:
        raise UnsupportedError(
            f"{name}: ONNX Runtime's embeddings take symmetric integers only; "
            "give it a scheme without zero points"
        )
    graph = module.graph
    width = int(tensor_of(module, stored.q).shape[1])
    linears = [user for user in readers_of(stored) if user.target is aten.linear.default]
    is_static = any(name_of(user) in context.static for user in linears)
    shared, owner = bool(linears), "" if is_static else name
    if stored.dtype in GATHER_BITS:
        block = stored.block
        if block < SMALLEST_GATHER_BLOCK or block & (block - 1):
            raise UnsupportedError(
                f"{name}: ONNX Runtime reads {stored.dtype} embeddings in blocks of a power of "
                f"two from 16 up, not {block or width}; use a -g32, -g64 or -g128 scheme, or w8"
            )
        columns = shared and stored.dtype == "int4"  # packed two-bit tables only go by rows
        q, scale = stored.q, stored.scale
        if columns:
            q, scale = (
                transposed_constant(module, stored.q, owner=owner),
                transposed_constant(module, stored.scale, owner=owner),
            )
        return graph.call_function(
            GATHER_BLOCK_QUANTIZED, (q, ids, scale, block, stored.dtype, columns)
        )
    if shared:
        q = graph.call_function(
            GATHER_COLUMNS, (transposed_constant(module, stored.q, owner=owner), ids)
        )
    else:
        q = graph.call_function(aten.embedding.default, (stored.q, ids))
    if shared and stored.block:
        scale = graph.call_function(
            GATHER_COLUMNS, (transposed_constant(module, stored.scale, owner=owner), ids)
        )
    else:
        table = stored.scale if stored.block else _scale_column(module, stored.scale)
        scale = graph.call_function(aten.embedding.default, (table, ids))
    for gathered in (q, scale):
        mark(gathered, name, "weight")
    axis = context.ranks[ids.name]
    return graph.call_function(
        ops.DEQUANTIZE_AFFINE, (q, scale, None, axis, stored.block or width, stored.dtype)
    )


def _scale_column(module: GraphModule, node: Node) -> Node:
    return derived_constant(module, f"{node.target}:column", tensor_of(module, node).reshape(-1, 1))


def _target(node: Node) -> Callable[..., Any]:
    if not callable(node.target):
        raise UnsupportedError(f"{node.name} is not a function call")
    return node.target
