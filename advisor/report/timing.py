"""Sections of the report about predicted time: its parts, and what the device computes in."""

from __future__ import annotations

from advisor.report.data import ReportData
from advisor.report.section import Cell, Section, Table
from advisor.report.units import MODELLED_MARK, format_percent, format_seconds

PART_TITLES = {
    "compute_s": ("Arithmetic", "operators whose products take longer than their traffic"),
    "memory_s": ("Memory traffic", "operators that wait for weights or activations"),
    "overhead_s": ("Launches and dispatch", "however small an operator is"),
    "boundary_s": ("Boundaries", "quantizing, dequantizing, passing to or from a delegate"),
    "timed_s": ("Timed as a whole", "on this machine; what it is spent on is not known"),
}
"""By field of ``TimeParts``, its name in reports and what is counted in it."""


def break_down_time(data: ReportData) -> Section:
    """What the predicted latency is made of; empty where nothing is predicted."""
    title = "Where the time goes"
    whole = data.breakdown.seconds
    if whole <= 0:
        return Section(title=title)
    parts = {field: getattr(data.breakdown, field) for field in PART_TITLES}
    rows = tuple(
        (
            Cell(text=PART_TITLES[field][0]),
            Cell(text=MODELLED_MARK + format_seconds(seconds), sort=seconds),
            Cell(text=MODELLED_MARK + format_percent(seconds / whole), sort=seconds / whole),
            Cell(text=PART_TITLES[field][1]),
        )
        for field, seconds in parts.items()
        if seconds
    )
    table = Table(
        caption="The predicted latency of one forward, in parts that add up to it",
        columns=("Part", "Time", "Share", "What is counted"),
        rows=rows,
        numeric=frozenset({1, 2}),
    )
    return Section(title=title, table=table)


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
