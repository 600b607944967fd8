"""What the layers, weights and quantized tensors of a plan are called in the package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, cast

from advisor.targets.parts import Names

METADATA: Final = "quantadvisor"
"""Key of the names in the package's own metadata."""

CAST: Final = "_cast"
"""What coremltools appends, with more behind it, when it changes the dtype of an operator."""

SHAPED: Final = "_has_output_shape"
"""What coremltools appends when it writes down the size of a transposed convolution's result."""


def names_to_json(names: Names) -> str:
    """Text for the package's metadata."""
    return json.dumps(asdict(names), sort_keys=True)


def read_names(metadata: Mapping[str, str]) -> Names:
    """What ``names_to_json`` wrote; nothing of a package of other making."""
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
    made = (f"{name}{CAST}", f"{name}{SHAPED}")
    return any(each == name or each.startswith(made) for each in names_of(op))
