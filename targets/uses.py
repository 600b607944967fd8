"""How a quantized graph uses its statically quantized tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch.fx import GraphModule

from advisor.passes import ops
from advisor.passes.graph import ActivationParams, name_of
from advisor.passes.layers import can_be_layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How a tensor is quantized. node: name of the graph node that computes it. readers: layers
    that see integers, None when everybody does."""

    node: str
    params: ActivationParams
    readers: frozenset[str] | None


def find_uses(module: GraphModule) -> dict[str, Use]:
    """The statically quantized tensors of a quantized graph, by tensor name."""
    found: dict[str, Use] = {}
    for node in module.graph.nodes:
        if node.target is not ops.QUANTIZE_STATIC:
            continue
        (source,) = node.all_input_nodes
        scale, zero_point, dtype = node.args[1:4]
        everyone = all(user is node for user in source.users)
        readers = {
            name_of(user) for back in node.users for user in back.users if can_be_layer(user)
        }
        found[name_of(node)] = Use(
            node=source.name,
            params=ActivationParams(scale=scale, zero_point=zero_point, dtype=dtype),
            readers=None if everyone else frozenset(readers),
        )
    return found


def sites_of(uses: Mapping[str, Use]) -> frozenset[str]:
    """Names of the graph nodes whose values are quantized."""
    return frozenset(use.node for use in uses.values())
