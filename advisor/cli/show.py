"""Listings of the command line: profiles, runtimes, and what this machine offers."""

from __future__ import annotations

import dataclasses
from itertools import chain, groupby, repeat
from typing import TYPE_CHECKING

from advisor.cli.output import Listing
from advisor.errors import MissingDependencyError
from advisor.profiles.loader import list_profiles, load_profile
from advisor.report.units import format_bytes, format_number
from advisor.targets.base import Configurable
from advisor.targets.options import choices
from advisor.targets.registry import capability_named, runtime_names, target_named

if TYPE_CHECKING:
    from collections.abc import Mapping

    from advisor.doctor import Diagnosis
    from advisor.profiles.schema import Figure, Overhead, Profile
    from advisor.targets.capability import Capability


def show_profiles() -> Listing:
    """Every profile that can be named as a target, families together."""
    profiles = list_profiles()
    by_family = sorted(profiles, key=lambda each: (each.vendor.lower(), each.family.lower()))
    return Listing(
        columns=("Family", "Target", "Hardware", "Aliases", "Runtime", "Memory"),
        rows=tuple(
            (
                f"{each.vendor} {each.family}" if first else "",
                each.name,
                each.title,
                ", ".join((*each.aliases, *_unit_aliases(each))),
                each.runtime,
                format_bytes(each.memory.capacity_bytes.value),
            )
            for _, members in groupby(by_family, key=lambda each: (each.vendor, each.family))
            for first, each in zip(chain([True], repeat(False)), members, strict=False)
        ),
        document=[dataclasses.asdict(each) for each in profiles],
    )


def show_profile(name: str) -> Listing:
    """One profile: every figure with its origin, its source, and what that says.

    Raises:
        ProfileError: no such profile.
    """
    profile = load_profile(name)
    memory = profile.memory
    figures: list[tuple[str, str, Figure | None]] = [
        ("cores", "", profile.cores),
        ("memory", "B", memory.capacity_bytes),
        ("memory bandwidth", "B/s", memory.bandwidth_bytes_per_s),
        ("bandwidth of one core", "B/s", memory.core_bandwidth_bytes_per_s),
        ("share of the bandwidth", "", memory.fraction),
        *((f"{each.unit} {each.dtype}", "op/s", each.ops_per_s) for each in profile.compute),
        *_efforts("", profile.efficiency, profile.overhead),
    ]
    for unit, own in profile.by_unit.items():
        figures += _efforts(f"{unit} alone: ", own.efficiency or {}, own.overhead)
    if profile.energy is not None:
        figures.append(("energy per byte", "J", profile.energy.joules_per_byte))
        figures += [
            (f"energy per {dtype} operation", "J", figure)
            for dtype, figure in profile.energy.joules_per_op.items()
        ]
    units = dict.fromkeys(each.unit for each in profile.compute)
    used = profile.units or tuple(units)
    return Listing(
        columns=("Figure", "Value", "Origin", "Says", "Source"),
        rows=tuple(
            (
                title,
                f"{format_number(each.value, 4)} {unit}".strip(),
                each.origin,
                each.says,
                "" if each.origin == "estimate" else each.source,
            )
            for title, unit, each in figures
            if each is not None
        ),
        document=dataclasses.asdict(profile),
        lines=(
            f"{profile.name}: {profile.title}; {profile.vendor} {profile.family}; "
            f"runtime {profile.runtime}; plans use {', '.join(used)}",
            *(
                f"target {profile.name}:{unit} uses its {unit} alone"
                for unit in units
                if len(units) > 1 and ":" not in profile.name
            ),
            *(
                f"target {alias} uses its {unit} alone"
                for alias, unit in profile.unit_aliases.items()
                if ":" not in profile.name
            ),
            *profile.notes,
        ),
    )


def _unit_aliases(profile: Profile) -> list[str]:
    """Such as "hexagon (npu+cpu)"."""
    return [f"{alias} ({unit})" for alias, unit in profile.unit_aliases.items()]


def _efforts(
    prefix: str, efficiency: Mapping[str, Figure], overhead: Overhead | None
) -> list[tuple[str, str, Figure | None]]:
    found: list[tuple[str, str, Figure | None]] = [
        (f"{prefix}efficiency of {family}", "", figure) for family, figure in efficiency.items()
    ]
    if overhead is not None:
        found.append((f"{prefix}launch of an operator", "s", overhead.launch_s))
        found.append((f"{prefix}dispatch of a pass", "s", overhead.dispatch_s))
    return found


def show_runtimes() -> Listing:
    """Every runtime that can be planned for."""
    known: list[Capability] = []
    broken: list[str] = []
    for name in runtime_names():
        try:
            known.append(capability_named(name))
        except MissingDependencyError as error:
            # A runtime of another package must not hide the ones that work.
            broken.append(f"{name}: {error}")
    return Listing(
        columns=("Runtime", "Name", "Version", "Writes files", "Schemes"),
        rows=tuple(
            (
                each.name,
                each.title,
                each.version,
                "yes" if each.emitter else "not yet",
                ", ".join(each.schemes),
            )
            for each in known
        ),
        document=[dataclasses.asdict(each) for each in known],
        lines=tuple(broken),
    )


def show_runtime(name: str) -> Listing:
    """One runtime: its schemes, on which operators, from which version, and by what source.

    Raises:
        UsageError: no such runtime.
        MissingDependencyError: a package that another package's runtime imports is missing.
    """
    capability = capability_named(name)
    refused = (f"no {scheme}: {why}" for scheme, why in capability.refused.items())
    return Listing(
        columns=("Scheme", "Operators", "From", "Note", "Source"),
        rows=tuple(
            (each.scheme, ", ".join(each.ops), each.minimum or "any", each.note, each.source)
            for each in capability.schemes.values()
        ),
        document=dataclasses.asdict(capability),
        lines=(
            f"{capability.title} {capability.version}; float is {capability.float_dtype}",
            *_option_lines(name),
            *refused,
            *capability.notes,
        ),
    )


def _option_lines(name: str) -> list[str]:
    """How the runtime's files can be written, by what ``advisor compile --option`` takes."""
    try:
        target = target_named(name)
    except MissingDependencyError:  # nothing here writes its files
        return []
    if not isinstance(target, Configurable):
        return []
    options: object = target.options
    return [
        f"--option {option}={words[0]} (default), or {', '.join(words[1:])}"
        for option, words in choices(type(options)).items()
    ]


def show_diagnosis(diagnosis: Diagnosis) -> Listing:
    """What is installed here, and what must be mended."""
    cpu = diagnosis.cpu
    features = "not listed by this system" if cpu.features is None else ", ".join(cpu.features)
    return Listing(
        columns=("Part", "Package", "Installed", "State"),
        rows=tuple(
            (
                each.title,
                each.distribution,
                each.version or "no",
                "ok" if each.ok else each.remedy,
            )
            for each in diagnosis.components
        ),
        document={
            **dataclasses.asdict(diagnosis),
            "ok": diagnosis.ok,
            "problems": list(diagnosis.problems),
            "notes": list(diagnosis.notes),
        },
        lines=(
            f"Python {diagnosis.python} on {diagnosis.platform}",
            f"{cpu.model}, {cpu.cores} cores; {features or 'no integer dot product'}",
            f"cache: {diagnosis.cache.path}",
            *(diagnosis.problems or ("everything that planning needs is here",)),
            *diagnosis.notes,
        ),
    )
