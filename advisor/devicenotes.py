"""Warnings of a plan: what is reported to go wrong on its device, and cannot be found out here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from advisor.plan import LayerDecision
from advisor.targets.capability import Capability


def with_warnings(
    notes: Sequence[str],
    layers: Sequence[LayerDecision],
    capability: Capability,
    units: Collection[str],
    platform: Mapping[str, str],
) -> tuple[str, ...]:
    """``notes`` with the warnings of these layers' schemes, and no others of the runtime.

    units: compute units of the device; none where it does not say. platform: its versions.
    """
    every = capability.warnings(capability.schemes, (), platform)
    stems = {warning.partition(": ")[2] for warning in every}
    kept = [note for note in notes if note.partition(": ")[2] not in stems]
    schemes = {layer.scheme for layer in layers}
    return (*kept, *capability.warnings(schemes, units, platform))
