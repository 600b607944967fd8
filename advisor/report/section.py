"""What a page is made of: titled sections with tables of cells."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell. sort: the number to sort by, None for text. hint: where the number is from."""

    text: str
    sort: float | None = None
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table; ``numeric`` holds the indices of the columns that are set flush right."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading, what it says in sentences, and a table where there is one."""

    title: str
    paragraphs: tuple[str, ...] = ()
    table: Table | None = None
