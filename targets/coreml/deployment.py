"""The oldest system that a package is for, and what a plan needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from advisor.errors import UnsupportedError
from advisor.passes.graph import QuantizedGraph
from advisor.targets.capability import load_capability
from advisor.targets.platforms import macos_of, shortfall

SPECIFICATIONS: Final = {"iOS15": 6, "iOS16": 7, "iOS17": 8, "iOS18": 9, "iOS26": 10}
"""Version of the file format that coremltools writes for each."""

NEWEST: Final = "iOS18"
"""What is taken where no profile says what the systems are."""


def for_platform(platform: Mapping[str, str]) -> str:
    """The newest deployment that every system of a profile's ``platform`` has."""
    able = [name for name in SPECIFICATIONS if not shortfall(name, platform)]
    return able[-1] if able else next(iter(SPECIFICATIONS))


def check_deployment(graph: QuantizedGraph, deployment: str) -> str:
    """The deployment to write for, which is never newer than what was asked.

    deployment: "auto" or a key of ``SPECIFICATIONS``.

    Raises:
        UnsupportedError: some layer's scheme needs a newer one; names both.
    """
    wanted = NEWEST if deployment == "auto" else deployment
    known = load_capability("coreml").schemes
    lacking: dict[str, list[str]] = {}
    for layer, choice in graph.assignment.items():
        entry = known.get(choice.scheme)
        minimum = entry.minimum if entry is not None else ""
        if minimum and number(minimum) > number(wanted):
            lacking.setdefault(minimum, []).append(f"{layer} ({choice.scheme})")
    if not lacking:
        return wanted
    needed = max(lacking, key=number)
    layers = [layer for each in lacking.values() for layer in each]
    shown = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
    raise UnsupportedError(
        f"deployment {describe(wanted)} was asked for, but {shown} need {describe(needed)}; "
        f"compile with options={{'deployment': {needed!r}}}, or plan for a profile whose platform "
        f"is {wanted}"
    )


def number(deployment: str) -> int:
    """18 of "iOS18"."""
    return int(deployment.removeprefix("iOS"))


def describe(deployment: str) -> str:
    """ "iOS18 (macOS 15)"."""
    return f"{deployment} (macOS {macos_of(number(deployment))})"
