"""From the words of ``advisor plan`` to a saved plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.atomic import check_writable
from advisor.budget import Budget
from advisor.cli.bounds import broken_gates, parse_gate
from advisor.cli.calibration import read_calibration
from advisor.cli.progress import show_progress
from advisor.errors import UsageError
from advisor.formats import scheme_named
from advisor.planfile import plan_paths

if TYPE_CHECKING:
    from advisor.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments of ``advisor plan`` as they were typed."""

    model: str
    target: str
    budget: str | None
    output: Path
    runtime: str | None
    objective: str
    batch: int
    sequence: int | None
    context: int | None
    threads: int | None
    pins: tuple[str, ...]
    schemes: str | None
    on_unsupported: str
    trials: int | None
    seed: int
    calibration: Path | None
    output_kinds: tuple[str, ...]
    fail_if: tuple[str, ...]
    cache: bool
    progress: bool


def make_plan(request: Request) -> tuple[Plan, Path, list[str]]:
    """The plan, where it was saved, and a sentence for every --fail-if bound that it breaks.

    Whatever can be found wrong without loading the model is found before it is loaded.

    Raises:
        AdvisorError: an argument cannot be used, no plan meets the budget, or a file cannot be
            read or written.
    """
    gates = tuple(parse_gate(text) for text in request.fail_if)
    arguments = _read_arguments(request)
    check_writable(plan_paths(request.output)[0])
    calibration = (
        None
        if request.calibration is None
        else read_calibration(request.calibration, request.batch)
    )
    from advisor.api import advise

    with show_progress(request.progress) as progress:
        plan = advise(
            request.model,
            calibration=calibration,
            progress=progress,
            **arguments,
        )
    return plan, plan.save(request.output), broken_gates(plan, gates)


def parse_pins(pins: tuple[str, ...]) -> dict[str, str]:
    """``("*.head=fp16",)`` as ``{"*.head": "fp16"}``.

    Raises:
        UsageError: no "=", an unknown scheme, or two schemes for one pattern.
    """
    result: dict[str, str] = {}
    for text in pins:
        pattern, separator, scheme = text.rpartition("=")
        if not separator or not pattern or not scheme:
            raise UsageError(
                f"cannot read --pin {text!r}; write GLOB=SCHEME, such as '*.head=fp16' or "
                f"'op:embedding=fp32'"
            )
        scheme_named(scheme)
        if result.setdefault(pattern, scheme) != scheme:
            raise UsageError(
                f"--pin gives {pattern!r} two schemes, {result[pattern]} and {scheme}; keep one"
            )
    return result


def parse_output_kinds(kinds: tuple[str, ...]) -> str | dict[str, str] | None:
    """``("logits",)`` as "logits", ``("scores=logits",)`` as ``{"scores": "logits"}``.

    Raises:
        UsageError: one kind for all outputs together with other kinds.
    """
    if not kinds:
        return None
    if len(kinds) == 1 and "=" not in kinds[0]:
        return kinds[0]
    pairs = [text.rpartition("=") for text in kinds]
    if not all(name and kind for name, _, kind in pairs):
        raise UsageError(
            f"cannot read --output-kind {', '.join(kinds)}; give one kind for every output, or "
            f"NAME=KIND for each"
        )
    return {name: kind for name, _, kind in pairs}


def _read_arguments(request: Request) -> dict[str, Any]:
    """Keyword arguments of ``advise``, as far as words on a command line give them."""
    from advisor.profiles.loader import load_profile

    # Only for its error: an unknown target should not cost the time to load the model.
    load_profile(request.target, request.runtime)
    arguments: dict[str, Any] = {
        "target": request.target,
        "budget": Budget.parse(request.budget),
        "runtime": request.runtime,
        "objective": request.objective,
        "batch": request.batch,
        "sequence": request.sequence,
        "context": request.context,
        "threads": request.threads,
        "pin": parse_pins(request.pins) or None,
        "schemes": None if request.schemes is None else _parse_schemes(request.schemes),
        "on_unsupported": request.on_unsupported,
        "seed": request.seed,
        "output": parse_output_kinds(request.output_kinds),
        "cache": request.cache,
    }
    if request.trials is not None:
        arguments["trials"] = request.trials
    return arguments


def _parse_schemes(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UsageError("--schemes names no scheme; write at least one, such as w8,w4-g32")
    return tuple(scheme_named(name).name for name in names)
