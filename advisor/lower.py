"""Compile a plan: emit, read back, execute, and only then put the folder in place."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from advisor.binding import quantized_of
from advisor.errors import OutputError, UnsupportedError, VerificationError
from advisor.targets.base import PlatformAware, Target
from advisor.targets.options import configure
from advisor.targets.registry import target_named

if TYPE_CHECKING:
    from advisor.plan import Plan
    from advisor.targets.base import Artifact, Target, Verification

SHOWN = 5
"""Mismatches listed in an error."""


def compile_plan(
    plan: Plan, out_dir: str | Path, runtime: str | None = None, options: object | None = None
) -> Artifact:
    """Lower ``plan`` to ``out_dir``; see ``Plan.compile``."""
    runtime = runtime or plan.runtime
    target = target_named(runtime)
    if runtime != plan.runtime:
        raise UnsupportedError(
            f"the plan is for {plan.runtime}; lowering it to {runtime} is not possible yet; "
            f"plan again with advise(..., runtime={runtime!r})"
        )
    outdated = target.capability.outdated(plan.platform)
    if outdated:
        raise UnsupportedError(
            f"the plan for {plan.target} cannot be compiled: {outdated}; plan again for a device "
            "that it builds for, or for another runtime with advise(..., runtime=...)"
        )
    target = configure(target, runtime, options, _defaults(plan, target))
    out = Path(out_dir)
    quantized = quantized_of(plan)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = _make_beside(out, "")
    except OSError as error:
        raise OutputError(
            f"cannot write to {out}: {error.strerror or error}; choose a folder you can write to"
        ) from error
    try:
        artifact = target.emit(quantized, draft)
        plan.save(draft / "plan.json")
        check(artifact.verify())
        _put_in_place(draft, out)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write to {out}: {error}; choose another folder") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target.load(out)


def _defaults(plan: Plan, target: Target) -> Mapping[str, str]:
    """Options that the profile the plan was made for asks for."""
    by_platform: Mapping[str, str] = (
        target.options_for(plan.platform) if isinstance(target, PlatformAware) else {}
    )
    return {**by_platform, **plan.options}


def check(verification: Verification) -> None:
    """Refuse an artifact that does not carry or compute the plan.

    Raises:
        VerificationError: lists the first mismatches.
    """
    if verification.ok:
        return
    shown = [f"{m.name}: expected {m.expected}, found {m.found}" for m in verification.mismatches]
    more = f"\n  and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    listing = "\n  ".join(shown[:SHOWN])
    raise VerificationError(
        f"the artifact does not carry the plan: {verification.layers_matched} of "
        f"{verification.layers_total} layers match; nothing was written. First mismatches:\n  "
        f"{listing}{more}\nPin these layers to another scheme, and report the mismatch"
    )


def _put_in_place(draft: Path, out: Path) -> None:
    """Swap the finished draft in; an artifact of an earlier compile is replaced whole."""
    if not out.exists():
        draft.rename(out)
        return
    is_ours = out.is_dir() and (not any(out.iterdir()) or (out / "artifact.json").exists())
    if not is_ours:
        raise OutputError(
            f"{out} exists and was not written by compile; choose another folder or remove it"
        )
    old = _make_beside(out, "old.")
    kept = out.rename(old / "artifact")
    try:
        draft.rename(out)
    except OSError:
        kept.rename(out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _make_beside(out: Path, mark: str) -> Path:
    """A new hidden folder beside ``out``, readable by whoever may read a folder made here."""
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}.{mark}", dir=out.parent))
    plain = made / "plain"
    plain.mkdir()  # mkdtemp makes its folder private; an artifact is meant to be shared
    made.chmod(plain.stat().st_mode)
    plain.rmdir()
    return made
