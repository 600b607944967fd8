"""What the commands print on stdout, for people or (--json) for machines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from advisor.plan import Plan

MODEL_HELP = "package.module:factory, a .pt2 file, or a Hugging Face folder."

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for machines on stdout.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A table for people and the whole data for machines. lines: printed below the table."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    document: object
    lines: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The data as JSON; sorted keys, paths as text."""
        return json.dumps(self.document, indent=2, sort_keys=True, default=_plain)


def print_listing(listing: Listing, *, as_json: bool) -> None:
    """Print a listing on stdout: the table and the lines, or its JSON."""
    if as_json:
        typer.echo(listing.to_json())
        return
    from rich import box
    from rich.table import Table

    from advisor.report.terminal import plain_text

    console = open_console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in listing.columns:
        table.add_column(column, overflow="fold")
    for row in listing.rows:
        table.add_row(*map(plain_text, row))
    console.print(table)
    for line in listing.lines:
        console.print(plain_text(line))


def print_report(plan: Plan, *, as_json: bool) -> None:
    """Print the report on stdout, for people or for machines."""
    if as_json:
        from advisor.report import render_json

        typer.echo(render_json(plan), nl=False)
        return
    from advisor.report.terminal import print_plan

    print_plan(open_console(), plan)


def open_console() -> Console:
    """A console on stdout."""
    from rich.console import Console

    return Console(highlight=False)


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"no JSON form for {type(value).__name__}")
