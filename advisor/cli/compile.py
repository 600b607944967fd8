"""``advisor compile``: from a saved plan to a verified artifact."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from advisor.planfile import load_plan
from advisor.targets.options import parse_options

if TYPE_CHECKING:
    from advisor.targets.base import Artifact, Verification


def compile_saved(
    plan_path: Path,
    model: str | None,
    out_dir: Path,
    runtime: str | None,
    options: Sequence[str] = (),
) -> tuple[Artifact, Verification]:
    """Compile the plan at ``plan_path``; ``model`` names the float model unless the plan does.

    options: of the runtime, as "io=int8".

    Raises:
        AdvisorError: the plan or the model cannot be used, the runtime is missing, the folder
            cannot be written, or the artifact does not carry the plan.
    """
    loaded = None
    if model is not None:
        from advisor.modelsource import load_model

        loaded = load_model(model).model
    chosen = parse_options(options)
    artifact = load_plan(plan_path, loaded).compile(out_dir, runtime, options=chosen)
    return artifact, artifact.verify()


def describe(artifact: Artifact, verification: Verification) -> str:
    """The outcome in a few lines."""
    lines = [
        f"artifact: {artifact.path}",
        f"layers that carry the plan: {verification.layers_matched} of {verification.layers_total}",
        f"executed by: {verification.executed_by}",
        f"largest absolute difference from the simulation: {verification.max_abs_error:.3g}",
    ]
    if verification.compared:
        lines.append(
            f"integers one step off: {verification.flips} of {verification.compared} compared"
        )
    lines += [
        f"mismatch in {each.name}: expected {each.expected}, found {each.found}"
        for each in verification.mismatches
    ]
    lines += verification.notes
    return "\n".join([*lines, f"verified: {'yes' if verification.ok else 'NO'}"])


def verification_json(artifact: Artifact, verification: Verification) -> str:
    """The outcome for machines."""
    document = {
        "path": str(artifact.path),
        "ok": verification.ok,
        **dataclasses.asdict(verification),
    }
    return json.dumps(document, indent=2, sort_keys=True)
