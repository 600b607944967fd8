"""Bring a captured graph into the one form that everything downstream relies on.

Each pass takes a GraphModule and returns a new one that shares its tensors; ``PIPELINE`` lists
them in order. Legal input: functional ATen from ``passes.capture``. ``passes.verify`` states what
a legal result is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node, map_arg

from advisor.passes.complexes import open_complex
from advisor.passes.fx import (
    argument,
    attribute,
    clone,
    constant_value,
    copy_meta,
    finish,
    free_name,
    read_constant,
    set_constant,
    stamp,
)
from advisor.passes.names import name_nodes
from advisor.passes.padding import fold_padding
from advisor.passes.pooling import name_global_pools
from advisor.passes.split_recurrent import split_recurrent

aten = torch.ops.aten
Pass = Callable[[GraphModule], GraphModule]

NO_OPS: Final = frozenset[Any](
    {
        aten.clone.default,
        aten.alias.default,
        aten.detach.default,
        aten.lift_fresh_copy.default,
        aten.contiguous.default,
    }
)
VIEWS: Final = frozenset[Any]({aten.view.default, aten._unsafe_view.default})
TRANSPOSES: Final = frozenset[Any](
    {aten.t.default, aten.numpy_T.default, aten.transpose.int, aten.permute.default}
)
RANDOM: Final = ("rand", "dropout", "bernoulli", "multinomial", "normal")
CHANNEL_DIM: Final[dict[Any, int]] = {
    aten.linear.default: -1,
    aten.conv1d.default: -2,
    aten.conv1d.padding: -2,
    aten.conv2d.default: -3,
    aten.conv2d.padding: -3,
    aten.conv_transpose1d.default: -2,
    aten.conv_transpose2d.input: -3,
}
"""Where the output channels are in the output of a layer that takes factors and shifts."""

TRANSPOSED: Final = frozenset[Any]({aten.conv_transpose1d.default, aten.conv_transpose2d.input})
"""Layers whose weight is (inputs, outputs / groups, ...)."""

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
        if value is not None and value.numel():
            key = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
            node.target = first.setdefault(key, str(node.target))
    return finish(module)


def remove_noops(module: GraphModule) -> GraphModule:
    """Drop operators that return their input.

    Given: clones, aliases, inference dropouts, full slices, metadata assertions; views.
    Result: their users read their input; views are reshapes, since a view of a transposed tensor
    relies on the clone between them.
    """
    module = clone(module)
    for node in list(module.graph.nodes):
        if node.target in VIEWS:
            node.target = aten.reshape.default
        elif node.target is aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
        elif node.target in NO_OPS or _is_full_slice(node) or _is_unused_dropout(node):
            node.replace_all_uses_with(argument(node, 0))
            module.graph.erase_node(node)
    return finish(module)


def fold_constants(module: GraphModule) -> GraphModule:
    """Compute once what depends on no input.

    Given: subgraphs over weights and literals only (masks, positions, batch-norm factors).
    Result: a constant in place of each such subgraph's last node, one for equal subgraphs. It is
    a parameter called ``<weight>_folded`` when it is computed from one, else a buffer.
    """
    module = clone(module)
    values: dict[Node, Any] = {}
    # Equal subgraphs get the same number. Spelling them out would double at every shared node.
    numbers: dict[str, int] = {}
    number: dict[Node, int] = {}
    trained: dict[Node, str] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            values[node] = attribute(module, str(node.target))
            number[node] = numbers.setdefault(str(node.target), len(numbers))
            is_trained = isinstance(values[node], torch.nn.Parameter)
            trained[node] = str(node.target) if is_trained else ""
        elif _is_foldable(node, values):
            with torch.no_grad():
                args = map_arg(node.args, values.__getitem__)
                kwargs = map_arg(node.kwargs, values.__getitem__)
                values[node] = node.target(*args, **kwargs)
            read = map_arg((node.args, dict(node.kwargs)), lambda n: f"<{number[n]}>")
            number[node] = numbers.setdefault(f"{node.target}{read!r}", len(numbers))
            weights = [trained[source] for source in node.all_input_nodes]
            trained[node] = next(filter(None, weights), "")
    made: dict[int, str] = {}
    for node in list(module.graph.nodes):
        value = values.get(node)
        is_read = any(user not in values for user in node.users)
        if node.op != "call_function" or not isinstance(value, torch.Tensor) or not is_read:
            continue
        if number[node] not in made:
            weight = trained[node]
            name = free_name(module, f"{weight}_folded" if weight else f"folded.{node.name}")
            dense = value.detach().contiguous()
            as_weight = torch.nn.Parameter(dense, requires_grad=False) if weight else dense
            made[number[node]] = set_constant(module, name, as_weight)
        constant = read_constant(module, node, made[number[node]])
        copy_meta(node, constant)
        stamp(constant, made_by="fold_constants")
        for user in list(node.users):
            if user not in values:
                user.replace_input_with(node, constant)
    return finish(module)


def canonicalise_linear(module: GraphModule) -> GraphModule:
    """One spelling for a product with a constant matrix.

    Given: addmm(bias, x, w), mm(x, w), matmul(x, w) with a constant two-dimensional w of (in, out)
    or the transpose of a constant (out, in).
    Result: linear(x, w of (out, in), bias); a constant that several products read stays one.
    """
    module = clone(module)
    transposed: dict[str, str] = {}
    for node in list(module.graph.nodes):
        parts = _linear_parts(node)
        if parts is None:
            continue
        x, weight, bias = parts
        source = _untransposed(weight)
        value = constant_value(module, source)
        if value is None or value.ndim != 2 or not value.is_floating_point():
            continue
        if bias is not None and not _is_vector(module, bias, size=node.meta["val"].shape[-1]):
            continue
        target = str(source.target)
        if source is weight:
            if target not in transposed:
                name = free_name(module, f"{target}_transposed")
                transposed[target] = set_constant(module, name, value.t().contiguous())
            source = read_constant(module, node, transposed[target])
            stamp(source, made_by="canonicalise_linear")
        with module.graph.inserting_before(node):
            linear = module.graph.call_function(aten.linear.default, (x, source, bias))
        copy_meta(node, linear)
        stamp(linear, made_by="canonicalise_linear")
        node.replace_all_uses_with(linear)
        module.graph.erase_node(node)
    return finish(module)


def fold_affine(module: GraphModule) -> GraphModule:
    """Move per-channel factors and shifts into the convolution or linear before them.

    Given: conv or linear, read only by mul(·, constant) or add(·, constant) with one value per
    output channel (what batch norm has become), and so on along the chain.
    Result: the constants are inside weight and bias. Layers that share a weight and are followed
    by the same constants still share it; otherwise each gets its own.
    """
    module = clone(module)
    chains = {node: _affine_chain(module, node) for node in module.graph.nodes}
    keys = {node: _affine_key(node, chain) for node, chain in chains.items() if chain}
    made: dict[Any, tuple[str, str | None]] = {}
    for layer, key in keys.items():
        if key not in made:
            made[key] = _store_folded(module, layer, chains[layer], keys)
    for layer, key in keys.items():
        weight, bias = made[key]
        constants = [read_constant(module, layer, weight)]
        if bias is not None:
            constants.append(read_constant(module, layer, bias))
        for constant in constants:
            stamp(constant, made_by="fold_affine")
        layer.args = (layer.args[0], *constants, *layer.args[1 + len(constants) :])
        stamp(layer, made_by="fold_affine")
        for step in reversed(chains[layer]):
            step.node.replace_all_uses_with(layer)
            module.graph.erase_node(step.node)
    return finish(module)


PIPELINE: Final[tuple[Pass, ...]] = (
    unify_tied,
    remove_noops,
    fold_padding,
    name_global_pools,
    open_complex,
    split_recurrent,  # while initial states are still known to be zeros
    canonicalise_linear,  # first, while a transposed weight is still known to be that weight
    fold_constants,
    canonicalise_linear,  # again, for weights that had to be computed
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
    start, end, step = (argument(node, index) for index in (2, 3, 4))
    return start in (None, 0) and end in (None, SLICE_END) and step in (None, 1)


def _is_unused_dropout(node: Node) -> bool:
    return node.target is aten.dropout.default and not argument(node, 2)


def _is_foldable(node: Node, values: dict[Node, Any]) -> bool:
    if node.op != "call_function" or any(word in str(node.target) for word in RANDOM):
        return False
    return all(source in values for source in node.all_input_nodes)


def _linear_parts(node: Node) -> tuple[Any, Node, Any] | None:
    if node.kwargs:
        return None
    if node.target is aten.addmm.default:
        bias, x, weight = (argument(node, index) for index in range(3))
    elif node.target in (aten.mm.default, aten.matmul.default):
        bias, x, weight = None, argument(node, 0), argument(node, 1)
    else:
        return None
    return (x, weight, bias) if isinstance(weight, Node) else None


def _untransposed(weight: Node) -> Node:
    """The matrix that ``weight`` is the transpose of; ``weight`` itself when it is none."""
    if weight.target not in TRANSPOSES or weight.meta["val"].ndim != 2:
        return weight
    if weight.target is aten.permute.default:
        swaps = [dim % 2 for dim in argument(weight, 1)] == [1, 0]
    elif weight.target is aten.transpose.int:
        swaps = argument(weight, 1) % 2 != argument(weight, 2) % 2
    else:
        swaps = True
    source: Node = argument(weight, 0)
    return source if swaps else weight


def _is_vector(module: GraphModule, node: Any, *, size: int) -> bool:
    value = constant_value(module, node)
    return value is not None and tuple(value.shape) == (size,)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One mul or add after a layer; factor: its constant, of shape (out,)."""

    node: Node
    constant: str
    factor: torch.Tensor

    @property
    def is_mul(self) -> bool:
        return self.node.target is aten.mul.Tensor


def _affine_chain(module: GraphModule, layer: Node) -> tuple[_Step, ...]:
    """The factors and shifts that follow a layer with constant weight and bias, in order."""
    weight = constant_value(module, argument(layer, 1))
    bias = argument(layer, 2)
    is_constant = bias is None or constant_value(module, bias) is not None
    if layer.target not in CHANNEL_DIM or layer.kwargs or weight is None or not is_constant:
        return ()
    steps: list[_Step] = []
    node = layer
    while len(node.users) == 1:
        (user,) = node.users
        step = _affine_step(module, layer, node, user, weight)
        if step is None:
            break
        steps.append(step)
        node = user
    return tuple(steps)


def _affine_step(
    module: GraphModule, layer: Node, node: Node, user: Node, weight: torch.Tensor
) -> _Step | None:
    if user.target not in (aten.mul.Tensor, aten.add.Tensor) or user.kwargs:
        return None
    other = argument(user, 1 if argument(user, 0) is node else 0)
    factor = constant_value(module, other)
    dim, outputs = CHANNEL_DIM[layer.target], weight.shape[0]
    if layer.target in TRANSPOSED:
        outputs = weight.shape[1] * _groups(layer)
    if factor is None or factor.dtype != weight.dtype or factor.numel() != outputs:
        return None
    # Of more dimensions than the layer's output it would add some.
    if not -dim <= factor.ndim <= layer.meta["val"].ndim or factor.shape[dim] != outputs:
        return None
    return _Step(node=user, constant=str(other.target), factor=factor.reshape(-1))


def _affine_key(layer: Node, chain: tuple[_Step, ...]) -> tuple[Any, ...]:
    """Equal for layers that get the same weight and bias."""
    steps = tuple((step.is_mul, step.constant) for step in chain)
    return (str(argument(layer, 1).target), str(argument(layer, 2)), steps)


def _store_folded(
    module: GraphModule, layer: Node, chain: tuple[_Step, ...], keys: dict[Node, tuple[Any, ...]]
) -> tuple[str, str | None]:
    """Compute the new weight and bias; names of both."""
    old_weight, old_bias = argument(layer, 1), argument(layer, 2)
    old: torch.Tensor = attribute(module, str(old_weight.target))
    weight, bias = old, constant_value(module, old_bias)
    for step in chain:
        if step.is_mul:
            weight = _scale_outputs(layer, weight, step.factor)
            bias = None if bias is None else bias * step.factor
        else:
            bias = step.factor if bias is None else bias + step.factor
    twins = {node for node, key in keys.items() if key == keys[layer]}
    weight_name = str(old_weight.target)
    if weight is not old:
        weight_name = set_constant(module, _name_for(module, weight_name, twins), weight)
    if bias is None:
        return weight_name, None
    path = str(old_weight.target).rpartition(".")[0]
    bias_name = f"{path}.bias".lstrip(".") if old_bias is None else str(old_bias.target)
    return weight_name, set_constant(module, _name_for(module, bias_name, twins), bias)


def _scale_outputs(layer: Node, weight: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """The weight with every output multiplied by its own number."""
    kernel = [1] * (weight.ndim - 2)
    if layer.target not in TRANSPOSED:
        return weight * factor.reshape([-1, 1, *kernel])
    groups = _groups(layer)
    by_group = weight.reshape(groups, -1, *weight.shape[1:])
    return (by_group * factor.reshape([groups, 1, -1, *kernel])).flatten(0, 1)


def _groups(layer: Node) -> int:
    return int(argument(layer, 6) or 1)


def _name_for(module: GraphModule, target: str, readers: set[Node]) -> str:
    """``target`` when only ``readers`` read it so far, else a free name like it."""
    nodes = module.graph.find_nodes(op="get_attr", target=target)
    users = {user for node in nodes for user in node.users}
    return target if users and users <= readers else free_name(module, target)
