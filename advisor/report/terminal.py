"""The report on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.panel import Panel
from rich.table import Table as RichTable
from rich.text import Text

from advisor.report.data import report_data
from advisor.report.page import lay_out
from advisor.report.section import Table

if TYPE_CHECKING:
    from rich.console import Console

    from advisor.plan import Plan

_LEFT_TO_FILES = frozenset(
    {"Static activation tensors", "Options that cannot run", "What the device computes in"}
)
"""Sections that would push the rest off the screen; files have them."""

_COLUMN_NEEDS = {
    "Bound by": 100,
    "Reason": 110,
    "Note": 120,
    "Operator": 170,
    "Algorithm": 170,
} | dict.fromkeys(("Next cheaper", "Next better"), 170)
"""Columns of the terminal below which a column is left out; files have them all."""


def print_plan(console: Console, plan: Plan) -> None:
    """Print the report; the longest lists are only in the files that ``Plan.report`` writes."""
    page = lay_out(report_data(plan))
    console.print(plain_text(page.title, style="bold"))
    console.print(plain_text(page.outcome))
    for alarm in page.alarms:
        console.print(Panel(plain_text(alarm, style="bold"), border_style="red", box=box.HEAVY))
    facts = RichTable.grid(padding=(0, 2))
    for label, value in page.facts:
        facts.add_row(plain_text(label, style="dim"), plain_text(value))
    console.print(facts)
    for section in page.sections:
        if section.title in _LEFT_TO_FILES:
            continue
        console.print()
        console.print(plain_text(section.title, style="bold"))
        for paragraph in section.paragraphs:
            console.print(plain_text(paragraph, style="dim"))
        if section.table is not None:
            console.print(_set_table(section.table, console.width))
            for line in _notes_below(section.table, console.width):
                console.print(plain_text(line))


def plain_text(text: str, style: str = "") -> Text:
    """``text`` as it is: no markup, and control characters spelled out rather than obeyed."""
    shown = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    return Text(shown, style=style)


def _set_table(table: Table, width: int) -> RichTable:
    result = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    shown = [index for index, name in enumerate(table.columns) if _has_room(name, width)]
    for index in shown:
        is_number = index in table.numeric
        longest = max((len(row[index].text) for row in table.rows), default=0)
        result.add_column(
            table.columns[index],
            justify="right" if is_number else "left",
            no_wrap=is_number,
            overflow="fold",
            min_width=max(len(table.columns[index]), min(longest, 16)),
        )
    for row in table.rows:
        result.add_row(*(plain_text(row[index].text) for index in shown))
    return result


def _notes_below(table: Table, width: int) -> list[str]:
    """The column of notes as lines, where the table has no room for it."""
    if "Note" not in table.columns or _has_room("Note", width):
        return []
    index = table.columns.index("Note")
    return [f"{row[0].text}: {row[index].text}" for row in table.rows if row[index].text]


def _has_room(column: str, width: int) -> bool:
    return width >= _COLUMN_NEEDS.get(column, 0)
