"""Operators of this target: coremltools does not read which form of GELU is meant, where that has a
name."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F

from advisor.targets.ownlinear import define_once


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


GELU_TANH: Final = define_once(
    "advisor_coreml::gelu_tanh", "(Tensor x)", _gelu_tanh, torch.empty_like
)
"""(x) -> x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))."""
