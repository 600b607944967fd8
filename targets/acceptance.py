"""The outcome of a verification, and acceptance.json, which records it number by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from advisor.targets.agreement import FLOAT_TOLERANCE, Agreement
from advisor.targets.base import LayerFormat, Mismatch, Verification
from advisor.targets.manifest import Manifest, write_json

ACCEPTANCE_FILE: Final = "acceptance.json"


def verify_all(
    manifest: Manifest,
    agreements: Sequence[Agreement],
    mismatches: Sequence[Mismatch],
    *,
    max_abs_error: float,
    executed_by: str,
    notes: Sequence[str] = (),
) -> Verification:
    """The verification of what was read back (``mismatches``) and of what was run alone."""
    problems = [
        Mismatch(name=found.layer, expected="the simulation's numbers", found=found.problem)
        for found in agreements
        if found.problem
    ]
    layers = {layer.name for layer in manifest.layers}
    broken = layers & {mismatch.name for mismatch in (*mismatches, *problems)}
    return Verification(
        layers_matched=len(layers) - len(broken),
        layers_total=len(layers),
        mismatches=(*problems, *mismatches),
        max_abs_error=max_abs_error,
        executed_by=executed_by,
        flips=sum(found.flips for found in agreements),
        compared=sum(found.compared for found in agreements),
        notes=tuple(notes),
    )


def write_acceptance(
    folder: Path,
    manifest: Manifest,
    verification: Verification,
    formats: Mapping[str, LayerFormat],
    agreements: Sequence[Agreement],
    *,
    packages: Sequence[str],
    **more: Any,
) -> None:
    """Write acceptance.json into ``folder``.

    packages: whose versions are recorded. more: what a target adds.
    """
    by_layer = {found.layer: found for found in agreements}
    rows: list[dict[str, Any]] = []
    for layer in manifest.layers:
        row: dict[str, Any] = {"name": layer.name, "planned": layer.scheme}
        if layer.name in formats:
            row |= asdict(formats[layer.name])
        if layer.name in by_layer:
            found = by_layer[layer.name]
            row |= {
                "error": found.error,
                "flips": found.flips,
                "compared": found.compared,
                "problem": found.problem,
            }
        rows.append(row)
    write_json(
        folder / ACCEPTANCE_FILE,
        {
            "ok": verification.ok,
            "layers_matched": verification.layers_matched,
            "layers_total": verification.layers_total,
            "max_abs_error": verification.max_abs_error,
            "float_tolerance": FLOAT_TOLERANCE,
            "mismatches": [asdict(mismatch) for mismatch in verification.mismatches],
            "layers": rows,
            "versions": {name: version(name) for name in packages},
            **more,
        },
    )
