"""What the legalisation passes share: where a weight is stored, and how nodes are rewritten."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from advisor.errors import UnsupportedError
from advisor.passes import ops
from advisor.passes.fx import copy_meta, free_name, set_constant, stamp
from advisor.passes.graph import ROLE_KEY, name_of

aten = torch.ops.aten
MADE_BY: Final = "targets.onnxruntime.legalise"

LAYER_TARGETS: Final[Mapping[Any, int]] = {
    aten.linear.default: 1,
    aten.conv1d.default: 1,
    aten.conv1d.padding: 1,
    aten.conv2d.default: 1,
    aten.conv2d.padding: 1,
    aten.embedding.default: 0,
}
"""Operators of layers, with the position of the weight among the arguments."""


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


@dataclass(frozen=True, slots=True)
class Context:
    """What passes need to know: ranks of tensors by node name, and the static layers' names."""

    ranks: Mapping[str, int]
    static: frozenset[str]


def argument_names(module: GraphModule) -> list[str]:
    """Names of the positional parameters of the model's own forward."""
    codegen: Any = module.graph._codegen  # pyright: ignore[reportPrivateUsage]  # no public way
    info = getattr(codegen, "pytree_info", None)
    return [] if info is None else list(info.orig_args)


def layers_of(module: GraphModule) -> list[tuple[Node, Node]]:
    """Every layer's node with the node of its weight."""
    found: list[tuple[Node, Node]] = []
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in LAYER_TARGETS:
            weight = node.args[LAYER_TARGETS[node.target]]
            if isinstance(weight, Node):
                found.append((node, weight))
    return found


def stored_of(weight: Node) -> Stored | None:
    """How a weight is stored when its node dequantizes integers, else None."""
    if weight.target is not ops.DEQUANTIZE_AFFINE:
        return None
    q, scale, zero_point, axis, block, dtype = weight.args
    return Stored(
        weight,
        as_node(q),
        as_node(scale),
        zero_point if isinstance(zero_point, Node) else None,
        int(str(axis)),
        int(str(block)),
        str(dtype),
    )


def readers_of(stored: Stored) -> list[Node]:
    """The layers that read the same stored integers."""
    constants = stored.q.graph.find_nodes(op="get_attr", target=str(stored.q.target))
    dequantized = [user for constant in constants for user in constant.users]
    return [user for node in dequantized for user in node.users]


def transposed_constant(module: GraphModule, node: Node, padding: int = 0, owner: str = "") -> Node:
    """A ``get_attr`` of the transposed constant, made once per owner.

    padding: columns of zeros added at the end.
    """
    tensor = tensor_of(module, node)
    if tensor.ndim == 0:
        return module.graph.get_attr(str(node.target))
    columns = torch.nn.functional.pad(tensor.t(), (0, padding)) if padding else tensor.t()
    return derived_constant(module, f"{node.target}:t:{owner}", columns.contiguous())


def derived_constant(module: GraphModule, key: str, value: torch.Tensor) -> Node:
    """A ``get_attr`` of a new buffer, made once under that key."""
    made: dict[str, str] = module.meta.setdefault("advisor_derived", {})
    if key not in made:
        made[key] = free_name(module, re.sub(r"\W", "_", key))
        set_constant(module, made[key], value)
    return module.graph.get_attr(made[key])


def replace_layer(node: Node, result: Node, role: str) -> None:
    """Let ``result`` stand for the layer ``node``, with its name and this role."""
    copy_meta(node, result)
    mark(result, name_of(node), role)
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)


def mark(node: Node, name: str, role: str) -> Node:
    """Stamp a node with the layer it belongs to and its part in it."""
    return stamp(node, made_by=MADE_BY, name=name, role=role)


def role_of(node: Node) -> str:
    """The node's part in its layer or tensor; empty when it has none."""
    custom: dict[str, Any] = node.meta.get("custom") or {}
    return str(custom.get(ROLE_KEY, ""))


def tensor_of(module: GraphModule, node: Node) -> torch.Tensor:
    """The constant behind a node.

    Raises:
        UnsupportedError: the node is no constant.
    """
    owner, _, leaf = str(node.target).rpartition(".")
    value = getattr(module.get_submodule(owner), leaf)
    if node.op != "get_attr" or not isinstance(value, torch.Tensor):
        raise UnsupportedError(f"{node.name} should be a constant tensor of a quantized weight")
    return value


def as_node(value: Any) -> Node:
    """An argument that must be a tensor in the graph.

    Raises:
        UnsupportedError: it is a constant.
    """
    if not isinstance(value, Node):
        raise UnsupportedError(f"expected a tensor in the graph, found the constant {value!r}")
    return value
