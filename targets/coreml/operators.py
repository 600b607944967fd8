"""Operators of this target: layers spelled so that their form in MIL is this package's own.

coremltools names the result of a Linear after whatever it makes of it; with an operator of our own
a layer is found by its name. It does not read which form of GELU is meant, where that has a name.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F

from advisor.passes.ops import Operator, define

NAMESPACE: Final = "advisor_coreml"


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(x, weight, bias)


def _linear_like(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def _operator(name: str, signature: str, compute: Any, like: Any) -> Operator:
    namespace: Any = torch.ops.advisor_coreml
    if not hasattr(namespace, name):
        define(f"{NAMESPACE}::{name}", f"{signature} -> Tensor", compute, like)
    found: Operator = getattr(namespace, name).default
    return found


LINEAR: Final = _operator(
    "linear", "(Tensor x, Tensor weight, Tensor? bias)", _linear, _linear_like
)
"""(x, weight, bias) -> x @ weight.T + bias."""

GELU_TANH: Final = _operator("gelu_tanh", "(Tensor x)", _gelu_tanh, torch.empty_like)
"""(x) -> x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))."""
