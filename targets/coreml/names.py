"""What the layers, weights and quantized tensors of a plan are called in the package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, cast

METADATA: Final = "quantadvisor"
"""Key of the names in the package's own metadata."""

STEP: Final = "_step_"
"""What follows a layer's name in the names of its later steps."""

CAST: Final = "_cast"
"""What coremltools appends, with more behind it, when it changes the dtype of an operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Names in MIL, before coremltools appends to them.

    layers: by layer name the operator that computes it. weights: by weight name the constant.
    tensors: by tensor name the quantize operators.
    """

    layers: dict[str, str] = field(default_factory=dict[str, str])
    weights: dict[str, str] = field(default_factory=dict[str, str])
    tensors: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def to_json(self) -> str:
        """Text for the package's metadata."""
        return json.dumps(asdict(self), sort_keys=True)


def read_names(metadata: Mapping[str, str]) -> Names:
    """What ``to_json`` wrote; nothing of a package of other making."""
    text = metadata.get(METADATA, "")
    if not text:
        return Names()
    kept: dict[str, Any] = json.loads(text)
    return Names(
        layers=kept.get("layers", {}),
        weights=kept.get("weights", {}),
        tensors=kept.get("tensors", {}),
    )


def as_list(value: Any) -> list[Any]:
    """Several values of an operator, of which it may have one without a list."""
    return list(cast("Sequence[Any]", value)) if isinstance(value, (list, tuple)) else [value]


def inputs_of(op: Any) -> list[Any]:
    """Every value that an operator reads."""
    return [var for given in op.inputs.values() for var in as_list(given) if var is not None]


def names_of(op: Any) -> list[str]:
    """What an operator and its results are called."""
    return [op.name or "", *(var.name for var in op.outputs)]


def is_named(op: Any, name: str) -> bool:
    """Whether an operator is the one that was given this name."""
    return any(each == name or each.startswith(f"{name}{CAST}") for each in names_of(op))
