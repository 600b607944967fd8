"""Values that the converter would make one: the same operator on the same values.

Two norms of one input whose gains are equal, as untrained ones are, are such. The plan may give
each of them another precision, so they have to stay two.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from advisor.passes.fx import attribute


def find_twins(module: GraphModule, values: Collection[str]) -> list[Node]:
    """Nodes named in ``values`` that compute what a node before them does, in execution order."""
    same: dict[Node, Node] = {}
    seen: dict[str, Node] = {}
    constants: dict[tuple[torch.Size, torch.dtype], list[Node]] = {}
    twins: list[Node] = []
    for node in module.graph.nodes:
        same[node] = node
        if node.op == "get_attr":
            same[node] = _same_constant(module, node, constants)
        elif node.op == "call_function":
            first = seen.setdefault(_key(node, same), node)
            if first is not node and node.name in values:
                twins.append(node)
            else:
                same[node] = first
    return twins


def _key(node: Node, same: dict[Node, Node]) -> str:
    """Equal for nodes that compute the same."""

    def named(source: Node) -> Any:
        return f"%{same[source].name}"

    return repr((str(node.target), map_arg(node.args, named), map_arg(node.kwargs, named)))


def _same_constant(
    module: GraphModule, node: Node, known: dict[tuple[torch.Size, torch.dtype], list[Node]]
) -> Node:
    """The first node that reads a constant of the same numbers."""
    value = attribute(module, str(node.target))
    if not isinstance(value, torch.Tensor):
        return node
    alike = known.setdefault((value.shape, value.dtype), [])
    for other in alike:
        if torch.equal(value, attribute(module, str(other.target))):
            return other
    alike.append(node)
    return node
