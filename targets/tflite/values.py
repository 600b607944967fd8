"""Values of the model by their stable names, as the file's own metadata tells them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from advisor.targets.tflite.flatbuffer import FlatModel

METADATA: Final = "quantadvisor"
"""Name of the metadata: {"values": {stable name: [tensor, channels last]}, "ends": {node of a
layer: stable name of what it ends in}, "starts": {node of a layer: stable names of what it
reads}}."""

TWIN: Final = "/int8"
"""End of the name of a tensor's integers."""


@dataclass(frozen=True, slots=True)
class Values:
    """The marked values of a file.

    places: tensor and whether channels come last, by stable name. ends: by a layer's node the
    value that it ends in, which is a fused activation function's where there is one. starts: the
    values that it reads. indices: by tensor name.
    """

    places: Mapping[str, tuple[str, bool]]
    ends: Mapping[str, str]
    starts: Mapping[str, Sequence[str]]
    indices: Mapping[str, int]

    def tensor(self, name: str, *, integers: bool = False) -> int | None:
        """Index of a value, or of its integers; None when the file has none."""
        place = self.places.get(name)
        return None if place is None else self.indices.get(place[0] + (TWIN if integers else ""))

    def channels_last(self, name: str) -> bool:
        """Whether (N, C, H, W) is kept as (N, H, W, C)."""
        return name in self.places and self.places[name][1]

    def stops(self) -> set[int]:
        """Every tensor that is a value, or its integers."""
        names = (place[0] for place in self.places.values())
        found = (self.indices.get(n + e) for n in names for e in ("", TWIN))
        return {index for index in found if index is not None}


def write_values(
    model: FlatModel,
    places: Mapping[str, tuple[str, bool]],
    ends: Mapping[str, str],
    starts: Mapping[str, Sequence[str]],
) -> None:
    """Keep the values with the model."""
    kept = {"values": dict(places), "ends": dict(ends), "starts": dict(starts)}
    model.set_metadata(METADATA, kept)


def read_values(model: FlatModel) -> Values:
    """What ``write_values`` kept; nothing in a file of other making."""
    kept: dict[str, Any] = model.metadata(METADATA) or {}
    values: dict[str, Any] = kept.get("values", {})
    return Values(
        places={name: (str(place[0]), bool(place[1])) for name, place in values.items()},
        ends=kept.get("ends", {}),
        starts=kept.get("starts", {}),
        indices={model.name(index): index for index in range(len(model.graph.tensors))},
    )
