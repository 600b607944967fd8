"""The report as Markdown that GitHub and GitLab show, for a file or a pipeline's step summary."""

from __future__ import annotations

import re

from advisor.report.page import Page
from advisor.report.section import Table

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$])")


def render_markdown(page: Page) -> str:
    """The page as Markdown; names from the model cannot break out of their cell."""
    lines = [f"# {_escape(page.title)}", "", _escape(page.outcome), ""]
    for alarm in page.alarms:
        lines += [f"> **WARNING: {_escape(alarm)}**", ""]
    lines += [f"- **{_escape(label)}:** {_escape(value)}" for label, value in page.facts]
    for section in page.sections:
        lines += ["", f"## {_escape(section.title)}"]
        for paragraph in section.paragraphs:
            lines += ["", _escape(paragraph)]
        if section.table is not None:
            lines += ["", *_table_lines(section.table)]
    return "\n".join(lines) + "\n"


def _table_lines(table: Table) -> list[str]:
    rules = ("---:" if index in table.numeric else "---" for index in range(len(table.columns)))
    return [
        _row(table.columns),
        f"| {' | '.join(rules)} |",
        *(_row(tuple(cell.text for cell in row)) for row in table.rows),
    ]


def _row(texts: tuple[str, ...]) -> str:
    return f"| {' | '.join(map(_escape, texts))} |"


def _escape(text: str) -> str:
    flat = " ".join(text.split())
    return _SPECIAL.sub(r"\\\1", flat).replace("&", "&amp;")
