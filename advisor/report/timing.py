"""Sections of the report about what predictions are made of, and what the device computes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from advisor.report.data import ReportData
from advisor.report.section import Cell, Section, Table
from advisor.report.units import (
    MODELLED_MARK,
    format_bytes,
    format_metric,
    format_percent,
    format_seconds,
)

PART_TITLES = {
    "compute_s": ("Arithmetic", "operators whose products take longer than their traffic"),
    "memory_s": ("Memory traffic", "operators that wait for weights or activations"),
    "overhead_s": ("Launches and dispatch", "however small an operator is"),
    "boundary_s": ("Boundaries", "quantizing, dequantizing, passing to or from a delegate"),
    "timed_s": ("Timed as a whole", "on this machine; what it is spent on is not known"),
}
"""By field of ``TimeParts``, its name in reports and what is counted in it."""

MEMORY_TITLES = {
    "weights_bytes": ("Weights", "and other constants, as the runtime keeps them"),
    "opening_bytes": ("Opening", "more than the weights, while the model is opened"),
    "activations_bytes": ("Activations", "tensors alive at the highest moment"),
    "scratch_bytes": ("Working memory", "of the operator that then runs"),
    "cache_bytes": ("Keys and values", "that a decoder keeps of its context"),
}
"""By field of ``MemoryParts``."""

ENERGY_TITLES = {
    "compute_j": ("Arithmetic", "of layers, by the profile's joules per operation"),
    "memory_j": ("Memory traffic", "of layers, by the profile's joules per byte"),
}
"""By field of ``EnergyParts``."""


def break_down_time(data: ReportData) -> Section:
    """What the predicted latency is made of; empty where nothing is predicted."""
    return _parts(
        Section(title="Where the time goes"),
        "Time",
        "The predicted latency of one forward, in parts that add up to it",
        data.breakdown,
        PART_TITLES,
        format_seconds,
    )


def break_down_memory(data: ReportData) -> Section:
    """What the predicted memory is made of; empty where nothing is predicted."""
    own = data.memory_parts.runtime_bytes
    said = "what the runtime's own code and data take on top is not known"
    if own is not None:
        said = f"the runtime's own code and data take {MODELLED_MARK}{format_bytes(own)} on top"
    return _parts(
        Section(title="Where the memory goes", paragraphs=(f"Besides these, {said}.",)),
        "Memory",
        "The predicted memory, in parts that add up to it",
        data.memory_parts,
        MEMORY_TITLES,
        format_bytes,
    )


def break_down_energy(data: ReportData) -> Section:
    """What the predicted energy is made of; empty where the profile has no figures of it."""
    return _parts(
        Section(title="Where the energy goes"),
        "Energy",
        "The predicted energy of one forward's layers, in parts that add up to it",
        data.energy_parts,
        ENERGY_TITLES,
        partial(format_metric, "energy_j"),
    )


def _parts(
    section: Section,
    quantity: str,
    caption: str,
    parts: object,
    titles: Mapping[str, tuple[str, str]],
    formatted: Callable[[float], str],
) -> Section:
    """The section with a table of the parts that are not zero; empty when all are."""
    amounts: dict[str, float] = {field: getattr(parts, field, 0.0) for field in titles}
    whole = sum(amounts.values())
    if whole <= 0:
        return Section(title=section.title)
    rows = tuple(
        (
            Cell(text=titles[field][0]),
            Cell(text=MODELLED_MARK + formatted(amount), sort=amount),
            Cell(text=MODELLED_MARK + format_percent(amount / whole), sort=amount / whole),
            Cell(text=titles[field][1]),
        )
        for field, amount in amounts.items()
        if amount
    )
    table = Table(
        caption=caption,
        columns=("Part", quantity, "Share", "What is counted"),
        rows=rows,
        numeric=frozenset({1, 2}),
    )
    return replace(section, table=table)


def describe_arithmetic(data: ReportData) -> Section:
    """By scheme, what the device computes in."""
    title = "What the device computes in"
    if not data.arithmetic:
        return Section(title=title)
    rows = tuple((Cell(text=name), Cell(text=said)) for name, said in data.arithmetic.items())
    table = Table(
        caption="Every scheme that a layer could have, or that this device lacks",
        columns=("Scheme", "On this device"),
        rows=rows,
    )
    return Section(title=title, table=table)
