"""Fences: operators that do nothing but keep ONNX Runtime from fusing the wrong neighbours."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from advisor.passes import ops
from advisor.passes.graph import name_of
from advisor.targets.onnxruntime.nodes import LAYER_TARGETS, Context, as_node, mark, role_of
from advisor.targets.onnxruntime.operators import BARRIER, FENCE

aten = torch.ops.aten

FACTORS: Final = frozenset({aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar})
FOLDED: Final = FACTORS | {
    aten.transpose.int,
    aten.permute.default,
    aten.t.default,
    aten.mT.default,
}
"""Operators that ONNX Runtime folds into a neighbouring MatMul."""

ACTIVATIONS: Final = frozenset(
    {
        aten.relu.default,
        aten.leaky_relu.default,
        aten.sigmoid.default,
        aten.tanh.default,
        aten.softplus.default,
        aten.hardsigmoid.default,
        aten.elu.default,
        aten.selu.default,
    }
)
"""Functions that ONNX Runtime folds into a Gemm, where integer weights are not looked for."""

TRANSPARENT: Final = frozenset(
    {aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default}
)
"""Operators that vanish on export."""

VIEWS: Final = TRANSPARENT | {
    aten.transpose.int,
    aten.permute.default,
    aten.t.default,
    aten.mT.default,
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
    aten.unsqueeze.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.expand.default,
    aten.max_pool2d.default,
    aten.max_pool1d.default,
}
"""Operators that ONNX Runtime moves a DequantizeLinear across."""

ABSORBED: Final = VIEWS | {aten.relu.default, aten.hardtanh.default, aten.clamp.default}
"""Operators that do not keep a quantizer behind them apart from a product before them."""

DEQUANTIZERS: Final = frozenset({ops.DEQUANTIZE_AFFINE, ops.DEQUANTIZE_STATIC})
WEIGHTED: Final = frozenset({aten.matmul.default, *LAYER_TARGETS}) - {aten.embedding.default}


def fence_layers(module: GraphModule, context: Context) -> GraphModule:
    """Given layers of dequantized integers. Result: no neighbour is fused into them first.

    ONNX Runtime folds a Transpose or a constant factor beside a MatMul into FusedMatMul before it
    looks for integer weights, and does not look at all when both sides are dequantized. Each
    leaves the layer in float, slower than before quantization. A weight-only layer behind a
    statically quantized tensor would run in integers instead of what was planned.
    """
    for node in list(module.graph.nodes):
        if role_of(node) != "op" or node.target not in WEIGHTED:
            continue
        if behind(as_node(node.args[1]), VIEWS).target is not ops.DEQUANTIZE_AFFINE:
            continue
        x, is_matmul = as_node(node.args[0]), node.target is aten.matmul.default
        kind: Any = None
        if name_of(node) not in context.static and behind(x, VIEWS).target in DEQUANTIZERS:
            kind = BARRIER
        elif is_matmul and behind(x, TRANSPARENT).target in FOLDED:
            kind = FENCE
        if kind is not None:
            with module.graph.inserting_before(node):
                fenced = module.graph.call_function(kind, (x,))
            node.replace_input_with(x, mark(fenced, name_of(node), "input"))
        if is_matmul and any(ahead(user).target in FACTORS for user in node.users):
            with module.graph.inserting_after(node):
                product = module.graph.call_function(FENCE, (node,))
            mark(product, name_of(node), "output")
            users = [user for user in node.users if user is not product]
            for user in users:
                user.replace_input_with(node, product)
    return module


def fence_behind(node: Node, is_static: bool, has_bias: bool) -> ops.Operator | None:
    """What must keep a linear layer apart from its bias, its activation or a quantizer."""
    users = {user.target for user in node.users}
    if is_static:
        return FENCE if has_bias or users != {ops.QUANTIZE_STATIC} else None
    if has_bias:
        return FENCE if users & ACTIVATIONS or is_quantized(node) else None
    # A quantizer is moved backward across reshapes until it meets the product.
    return BARRIER if is_quantized(node) else None


def is_quantized(node: Node) -> bool:
    """Whether a quantizer reads the node, directly or across operators it can pass or absorb."""
    return any(
        user.target is ops.QUANTIZE_STATIC or (user.target in ABSORBED and is_quantized(user))
        for user in node.users
    )


def behind(node: Node, through: frozenset[Any]) -> Node:
    """The first node at or before ``node`` whose operator is not among ``through``."""
    while node.target in through and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def ahead(node: Node) -> Node:
    """The first node at or after ``node`` that does not vanish on export."""
    while node.target in TRANSPARENT and len(node.users) == 1:
        node = next(iter(node.users))
    return node
