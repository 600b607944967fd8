"""Linear layers of quantized weights: one matmul of a weight stored (inputs, outputs)."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from advisor.passes import ops
from advisor.passes.fx import copy_meta
from advisor.passes.graph import name_of
from advisor.targets.onnxruntime.fences import fence_behind
from advisor.targets.onnxruntime.nodes import (
    Context,
    Stored,
    as_node,
    layers_of,
    mark,
    readers_of,
    replace_layer,
    stored_of,
    tensor_of,
    transposed_constant,
)

aten = torch.ops.aten


def transpose_linears(module: GraphModule, context: Context) -> GraphModule:
    """Given linears of dequantized integers. Result: weights stored (in, out), one matmul each.

    DequantizeLinear straight into MatMul is the form that ONNX Runtime fuses; a Transpose in
    between costs a factor of nine. A statically quantized layer gets a fence behind it: where
    shapes are known, MatMul and Add otherwise become a Gemm before the integer fusion runs, which
    then finds nothing to fuse (2.4 ms instead of 0.4 ms for 128 x 384 x 1536), and a Relu right
    behind the MatMul stops that fusion too. A weight-only layer gets one where an activation
    function would join that Gemm, or where a quantizer would take it for a layer in integers.
    Weight-only layers that share a weight get a constant each: ONNX Runtime fuses only one with a
    single reader. Their bytes are stored once, see ``onnxfile.write_model``. Two-bit weights are
    padded to a multiple of four outputs: ONNX Runtime 1.31 scrambles the others when it repacks
    rows that do not end on a byte.
    """
    for node, weight in layers_of(module):
        stored = stored_of(weight)
        if node.target is not aten.linear.default or stored is None:
            continue
        x, bias = as_node(node.args[0]), node.args[2] if len(node.args) > 2 else None
        name = name_of(node)
        outputs = int(tensor_of(module, stored.q).shape[0])
        padding = -outputs % 4 if stored.dtype == "int2" else 0
        is_static = name in context.static
        owner = "" if is_static or len(readers_of(stored)) == 1 else name
        with module.graph.inserting_before(node):
            dequantized = _transposed(module, stored, padding, owner)
            mark(dequantized, name, "weight")
            product = module.graph.call_function(aten.matmul.default, (x, dequantized))
            copy_meta(node, product)
            result = product
            if padding:
                result = module.graph.call_function(aten.slice.Tensor, (product, -1, 0, outputs))
            fence = fence_behind(node, is_static, bias is not None)
            if fence is not None:
                result = module.graph.call_function(fence, (result,))
                mark(result, name, "bias")
            if bias is not None:
                result = module.graph.call_function(aten.add.Tensor, (result, as_node(bias)))
        replace_layer(node, result, "op" if result is product else "output")
        mark(product, name, "op")
    return module


def _transposed(module: GraphModule, stored: Stored, padding: int, owner: str) -> Node:
    q, scale, zero_point = (
        None if part is None else transposed_constant(module, part, padding, owner)
        for part in (stored.q, stored.scale, stored.zero_point)
    )
    arguments = (q, scale, zero_point, 1 - stored.axis, stored.block, stored.dtype)
    return module.graph.call_function(ops.DEQUANTIZE_AFFINE, arguments)
