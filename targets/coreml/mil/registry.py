"""Which function computes which operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import torch

Value = Any
"""A tensor, a list of tensors, or text."""


@dataclass(frozen=True, slots=True)
class Call:
    """One operator with its inputs' values. floats are float32, whatever the file computes in.

    shapes: of its outputs.
    """

    kind: str
    inputs: Mapping[str, Value]
    shapes: tuple[tuple[int, ...], ...]

    def tensor(self, name: str) -> torch.Tensor:
        """An input that is there."""
        return cast("torch.Tensor", self.inputs[name])

    def optional(self, name: str) -> torch.Tensor | None:
        """An input that may be left out."""
        return cast("torch.Tensor | None", self.inputs.get(name))

    def tensors(self, name: str) -> list[torch.Tensor]:
        """A list of tensors."""
        return list(cast("Sequence[torch.Tensor]", self.inputs[name]))

    def ints(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """A vector of integers."""
        value = self.inputs.get(name)
        return list(default) if value is None else [int(v) for v in _flat(value)]

    def flags(self, name: str, count: int) -> list[bool]:
        """A vector of truth values; all false when left out."""
        value = self.inputs.get(name)
        return [False] * count if value is None else [bool(v) for v in _flat(value)]

    def int(self, name: str, default: int = 0) -> int:
        """One integer."""
        value = self.inputs.get(name)
        return default if value is None else int(value)

    def float(self, name: str, default: float = 0.0) -> float:
        """One number."""
        value = self.inputs.get(name)
        return default if value is None else float(value)

    def text(self, name: str, default: str = "") -> str:
        """A word."""
        value = self.inputs.get(name)
        return default if value is None else str(value)


def _flat(value: Value) -> list[Any]:
    return list(torch.as_tensor(value).reshape(-1).numpy())


Compute = Callable[[Call], Value]

OPERATORS: Final[dict[str, Compute]] = {}
"""By MIL's name of the operator."""


def operator(*kinds: str) -> Callable[[Compute], Compute]:
    """Register a function for operators."""

    def register(function: Compute) -> Compute:
        for kind in kinds:
            OPERATORS[kind] = function
        return function

    return register
