"""FX passes that give a quantized graph the shapes ONNX Runtime has fast kernels for.

They move no number: integers and scales are only transposed, and the legalised graph computes
the same as the quantized graph up to the order of float additions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from advisor.errors import UnsupportedError
from advisor.passes import ops
from advisor.passes.fx import (
    clone,
    copy_meta,
    finish,
    flatten_inputs,
    free_name,
    set_buffer,
    stamp,
)
from advisor.passes.graph import ROLE_KEY, QuantizedGraph, name_of
from advisor.passes.shapes import infer_shapes
from advisor.targets.onnxruntime.operators import FENCE, GATHER_BLOCK_QUANTIZED, GATHER_COLUMNS

aten = torch.ops.aten

LAYER_TARGETS: Final[Mapping[Any, int]] = {
    aten.linear.default: 1,
    aten.conv1d.default: 1,
    aten.conv1d.padding: 1,
    aten.conv2d.default: 1,
    aten.conv2d.padding: 1,
    aten.embedding.default: 0,
}
"""Operators of layers, with the position of the weight among the arguments."""

CASTS: Final = frozenset({aten._to_copy.default, aten.to.dtype})
FACTORS: Final = frozenset({aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar})
FOLDED: Final = FACTORS | {
    aten.transpose.int,
    aten.permute.default,
    aten.t.default,
    aten.mT.default,
}
"""Operators that ONNX Runtime folds into a neighbouring MatMul."""

TRANSPARENT: Final = frozenset(
    {aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default}
)
"""Operators that vanish on export."""

GATHER_BITS: Final = frozenset({"int4", "int2"})
"""Embedding tables that ONNX's own Gather cannot read, so ONNX Runtime's operator does."""

SMALLEST_GATHER_BLOCK: Final = 16
"""GatherBlockQuantized wants a power of two from 16 up (checked by its shape inference)."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a quantized weight comes from: the nodes and settings of its dequantization."""

    node: Node
    q: Node
    scale: Node
    zero_point: Node | None
    axis: int
    block: int
    dtype: str


def legalise(graph: QuantizedGraph) -> GraphModule:
    """Given a quantized graph, a new module after all of ``LEGALISE``; shares its tensors.

    Raises:
        UnsupportedError: a layer has a form no kernel of ONNX Runtime takes.
    """
    module = clone(graph.module)
    flat = flatten_inputs(module, graph.float_graph.args, graph.float_graph.kwargs)
    ranks = {name: len(info.shape) for name, info in infer_shapes(module, flat).items()}
    for legalisation in LEGALISE:
        module = finish(legalisation(module, ranks))
    return module


def mark_layers(module: GraphModule, ranks: Mapping[str, int]) -> GraphModule:
    """Given any graph. Result: layer nodes have the role "op", their weights' nodes "weight"."""
    for node, _ in _layers(module):
        name = name_of(node)
        _stamp(node, name, "op")
        weight = node.args[LAYER_TARGETS[node.target]]
        while isinstance(weight, Node) and weight.op == "call_function":
            _stamp(weight, name, "weight")
            weight = weight.args[0]
    return module


def gather_embeddings(module: GraphModule, ranks: Mapping[str, int]) -> GraphModule:
    """Given embeddings of dequantized tables. Result: only the rows read are dequantized.

    int8: Gather of integers, Gather of scales, one DequantizeLinear. Four and two bits: one
    GatherBlockQuantized. float16: Gather, then a cast. A table that a linear layer shares is
    kept transposed, as that layer needs it, so that it is stored once.
    """
    for node, weight in _layers(module):
        if node.target is not aten.embedding.default:
            continue
        ids = _node(node.args[1])
        stored = _stored(weight)
        with module.graph.inserting_before(node):
            if stored is not None:
                rows = _gather_integers(module, node, stored, ids, ranks[ids.name])
            elif weight.target in CASTS:
                gathered = module.graph.call_function(aten.embedding.default, (weight.args[0], ids))
                _stamp(gathered, name_of(node), "weight")
                rows = module.graph.call_function(
                    _target(weight), (gathered, *weight.args[1:]), dict(weight.kwargs)
                )
            else:
                continue
        _replace(node, rows, "op")
    return module


def transpose_linears(module: GraphModule, ranks: Mapping[str, int]) -> GraphModule:
    """Given linears of dequantized integers. Result: weights stored (in, out), one matmul each.

    DequantizeLinear straight into MatMul is the form that ONNX Runtime fuses; a Transpose in
    between costs a factor of nine. A statically quantized layer on a matrix gets its bias added
    in three dimensions: on two, MatMul and Add become a Gemm before the integer fusion runs,
    which then finds nothing to fuse (2.4 ms instead of 0.4 ms for 128 x 384 x 1536).
    Weight-only layers that share a weight get a copy each: ONNX Runtime fuses only a constant
    with a single reader. Two-bit weights are padded to a multiple of four outputs: ONNX Runtime
    1.31 scrambles the others when it repacks rows that do not end on a byte.
    """
    for node, weight in _layers(module):
        stored = _stored(weight)
        if node.target is not aten.linear.default or stored is None:
            continue
        x, bias = _node(node.args[0]), node.args[2] if len(node.args) > 2 else None
        name = name_of(node)
        outputs = int(_tensor(module, stored.q).shape[0])
        padding = -outputs % 4 if stored.dtype == "int2" else 0
        is_static = x.target is ops.DEQUANTIZE_STATIC
        owner = "" if is_static or len(_readers(stored)) == 1 else name
        with module.graph.inserting_before(node):
            dequantized = _transposed(module, stored, padding, owner)
            _stamp(dequantized, name, "weight")
            product = module.graph.call_function(aten.matmul.default, (x, dequantized))
            copy_meta(node, product)
            result = product
            if padding:
                result = module.graph.call_function(aten.slice.Tensor, (product, -1, 0, outputs))
            if bias is not None:
                lift = is_static and ranks[x.name] == 2
                result = _add_bias(module, result, _node(bias), lift, name)
        _replace(node, result, "op" if result is product else "output")
        _stamp(product, name, "op")
    return module


def fence_matmuls(module: GraphModule, ranks: Mapping[str, int]) -> GraphModule:
    """Given matmuls of dequantized integers. Result: no neighbour is fused into them first.

    ONNX Runtime folds a Transpose or a constant factor beside a MatMul into FusedMatMul before it
    looks for integer weights, and does not look at all when both sides are dequantized. Each
    leaves the layer in float, slower than before quantization.
    """
    for node in list(module.graph.nodes):
        if node.target is not aten.matmul.default or role_of(node) != "op":
            continue
        x = _node(node.args[0])
        source = _behind(x)
        if source.target in FOLDED or source.target is ops.DEQUANTIZE_AFFINE:
            with module.graph.inserting_before(node):
                fenced = module.graph.call_function(FENCE, (x,))
            node.replace_input_with(x, _stamp(fenced, name_of(node), "input"))
        if any(_ahead(user).target in FACTORS for user in node.users):
            with module.graph.inserting_after(node):
                fenced = module.graph.call_function(FENCE, (node,))
            node.replace_all_uses_with(
                fenced, delete_user_cb=lambda user, own=fenced: user is not own
            )
            _stamp(fenced, name_of(node), "output")
    return module


Pass = Callable[[GraphModule, Mapping[str, int]], GraphModule]

LEGALISE: Final[tuple[Pass, ...]] = (
    mark_layers,
    gather_embeddings,
    transpose_linears,
    fence_matmuls,
)
"""The passes, in order. Each takes the module and the rank of every node's tensor by name."""


def _layers(module: GraphModule) -> list[tuple[Node, Node]]:
    """Every layer's node with the node of its weight."""
    found: list[tuple[Node, Node]] = []
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in LAYER_TARGETS:
            weight = node.args[LAYER_TARGETS[node.target]]
            if isinstance(weight, Node):
                found.append((node, weight))
    return found


def _stored(weight: Node) -> Stored | None:
    if weight.target is not ops.DEQUANTIZE_AFFINE:
        return None
    q, scale, zero_point, axis, block, dtype = weight.args
    return Stored(
        weight,
        _node(q),
        _node(scale),
        zero_point if isinstance(zero_point, Node) else None,
        int(str(axis)),
        int(str(block)),
        str(dtype),
    )


def _gather_integers(
    module: GraphModule, node: Node, stored: Stored, ids: Node, ids_rank: int
) -> Node:
    name = name_of(node)
    if stored.zero_point is not None:
        raise UnsupportedError(
            f"{name}: ONNX Runtime's embeddings take symmetric integers only; "
            "give it a scheme without zero points"
        )
    graph = module.graph
    width = int(_tensor(module, stored.q).shape[1])
    shared = _is_transposed_elsewhere(stored)
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
            q, scale = _constant_t(module, stored.q), _constant_t(module, stored.scale)
        return graph.call_function(
            GATHER_BLOCK_QUANTIZED, (q, ids, scale, block, stored.dtype, columns)
        )
    if shared:
        q = graph.call_function(GATHER_COLUMNS, (_constant_t(module, stored.q), ids))
    else:
        q = graph.call_function(aten.embedding.default, (stored.q, ids))
    if shared and stored.block:
        scale = graph.call_function(GATHER_COLUMNS, (_constant_t(module, stored.scale), ids))
    else:
        table = stored.scale if stored.block else _scale_column(module, stored.scale)
        scale = graph.call_function(aten.embedding.default, (table, ids))
    for gathered in (q, scale):
        _stamp(gathered, name, "weight")
    return graph.call_function(
        ops.DEQUANTIZE_AFFINE, (q, scale, None, ids_rank, stored.block or width, stored.dtype)
    )


def _transposed(module: GraphModule, stored: Stored, padding: int, owner: str) -> Node:
    q, scale, zero_point = (
        None if part is None else _constant_t(module, part, padding, owner)
        for part in (stored.q, stored.scale, stored.zero_point)
    )
    arguments = (q, scale, zero_point, 1 - stored.axis, stored.block, stored.dtype)
    return module.graph.call_function(ops.DEQUANTIZE_AFFINE, arguments)


def _add_bias(module: GraphModule, product: Node, bias: Node, lift: bool, name: str) -> Node:
    graph = module.graph
    if not lift:
        return graph.call_function(aten.add.Tensor, (product, bias))
    lifted = graph.call_function(aten.unsqueeze.default, (product, 0))
    total = graph.call_function(aten.add.Tensor, (lifted, bias))
    for node in (lifted, total):
        _stamp(node, name, "bias")
    return graph.call_function(aten.squeeze.dim, (total, 0))


def _behind(node: Node) -> Node:
    while node.target in TRANSPARENT and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _ahead(node: Node) -> Node:
    while node.target in TRANSPARENT and len(node.users) == 1:
        node = next(iter(node.users))
    return node


def _readers(stored: Stored) -> list[Node]:
    """The layers that read the same stored integers."""
    constants = stored.q.graph.find_nodes(op="get_attr", target=str(stored.q.target))
    dequantized = [user for constant in constants for user in constant.users]
    return [user for node in dequantized for user in node.users]


def _is_transposed_elsewhere(stored: Stored) -> bool:
    """Whether a static linear shares the integers, so that its (in, out) table can serve both."""
    return any(
        user.target is aten.linear.default and _node(user.args[0]).target is ops.DEQUANTIZE_STATIC
        for user in _readers(stored)
    )


def _constant_t(module: GraphModule, node: Node, padding: int = 0, owner: str = "") -> Node:
    """A ``get_attr`` of the transposed constant, made once per owner.

    padding: columns of zeros added at the end.
    """
    tensor = _tensor(module, node)
    if tensor.ndim == 0:
        return module.graph.get_attr(str(node.target))
    target = f"{node.target}_t_{owner}".replace(".", "_").replace("#", "_")
    columns = torch.nn.functional.pad(tensor.t(), (0, padding)) if padding else tensor.t()
    return _derived(module, target, columns.contiguous())


def _scale_column(module: GraphModule, node: Node) -> Node:
    target = f"{node.target}_column".replace(".", "_")
    return _derived(module, target, _tensor(module, node).reshape(-1, 1))


def _derived(module: GraphModule, target: str, value: torch.Tensor) -> Node:
    made: dict[str, str] = module.meta.setdefault("advisor_derived", {})
    if target not in made:
        made[target] = free_name(module, target)
        set_buffer(module, made[target], value)
    return module.graph.get_attr(made[target])


def _replace(node: Node, result: Node, role: str) -> None:
    copy_meta(node, result)
    _stamp(result, name_of(node), role)
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)


def _stamp(node: Node, name: str, role: str) -> Node:
    return stamp(node, made_by="targets.onnxruntime.legalise", name=name, role=role)


def role_of(node: Node) -> str:
    """The node's part in its layer or tensor; empty when it has none."""
    custom: dict[str, Any] = node.meta.get("custom") or {}
    return str(custom.get(ROLE_KEY, ""))


def _tensor(module: GraphModule, node: Node) -> torch.Tensor:
    owner, _, leaf = str(node.target).rpartition(".")
    value = getattr(module.get_submodule(owner), leaf)
    if node.op != "get_attr" or not isinstance(value, torch.Tensor):
        raise UnsupportedError(f"{node.name} should be a constant tensor of a quantized weight")
    return value


def _node(value: Any) -> Node:
    if not isinstance(value, Node):
        raise UnsupportedError(f"expected a tensor in the graph, found the constant {value!r}")
    return value


def _target(node: Node) -> Callable[..., Any]:
    if not callable(node.target):
        raise UnsupportedError(f"{node.name} is not a function call")
    return node.target
