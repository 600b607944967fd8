"""Linears as one operator that converters do not know, so that what they become is ours to say.

Converters name the result of a Linear after whatever they make of it, or take it apart; with an
operator of our own a layer is found by its name.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch.fx import Graph

from advisor.passes.fx import argument
from advisor.passes.ops import Operator, define

NAMESPACE: Final = "advisor_targets"


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(x, weight, bias)


def _linear_like(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _operator() -> Operator:
    namespace: Any = torch.ops.advisor_targets
    if not hasattr(namespace, "linear"):
        schema = "(Tensor x, Tensor weight, Tensor? bias) -> Tensor"
        define(f"{NAMESPACE}::linear", schema, _linear, _linear_like)
    found: Operator = namespace.linear.default
    return found


LINEAR: Final = _operator()
"""(x, weight, bias) -> x @ weight.T + bias."""


def own_linears(graph: Graph) -> None:
    """Spell every Linear with the operator of this module."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default):
        node.args = (argument(node, 0), argument(node, 1), argument(node, 2))
        node.target = LINEAR
