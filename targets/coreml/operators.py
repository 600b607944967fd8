"""Operators of this target: layers spelled so that their form in MIL is this package's own.

coremltools names the result of a Linear after whatever it makes of it; with an operator of our own
a layer is found by its name.
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


def _operator() -> Operator:
    namespace: Any = torch.ops.advisor_coreml
    if not hasattr(namespace, "linear"):
        schema = "(Tensor x, Tensor weight, Tensor? bias) -> Tensor"
        define(f"{NAMESPACE}::linear", schema, _linear, _linear_like)
    found: Operator = namespace.linear.default
    return found


LINEAR: Final = _operator()
"""(x, weight, bias) -> x @ weight.T + bias."""
