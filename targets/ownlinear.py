"""Linears as one operator that converters do not know, so that what they become is ours to say.

Converters name the result of a Linear after whatever they make of it, or take it apart; with an
operator of our own a layer is found by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch.fx import Graph

from advisor.passes.fx import argument
from advisor.passes.ops import Operator, define


def define_once(
    qualified: str,
    signature: str,
    compute: Callable[..., torch.Tensor],
    like: Callable[..., torch.Tensor],
) -> Operator:
    """An operator "namespace::name" of a target's own, registered when it is not there yet.

    signature: of its arguments. like: its result for tensors without values.
    """
    names, _, name = qualified.partition("::")
    namespace: Any = getattr(torch.ops, names)
    if not hasattr(namespace, name):
        define(qualified, f"{signature} -> Tensor", compute, like)
    found: Operator = getattr(namespace, name).default
    return found


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(x, weight, bias)


def _linear_like(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


LINEAR: Final = define_once(
    "advisor_targets::linear", "(Tensor x, Tensor weight, Tensor? bias)", _linear, _linear_like
)
"""(x, weight, bias) -> x @ weight.T + bias."""


def own_linears(graph: Graph) -> None:
    """Spell every Linear with the operator of this module."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default):
        node.args = (argument(node, 0), argument(node, 1), argument(node, 2))
        node.target = LINEAR
