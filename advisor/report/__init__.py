"""The report on a plan: plain data from ``report_data``, set by one small renderer per form."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from advisor.atomic import write_text
from advisor.errors import UsageError
from advisor.report.data import ReportData, report_data

if TYPE_CHECKING:
    from advisor.plan import Plan

__all__ = [
    "ReportData",
    "render_html",
    "render_json",
    "render_markdown",
    "report_data",
    "report_text",
    "write_report",
]


def write_report(plan: Plan, path: str | Path) -> Path:
    """Write the report in the form that the suffix names; returns the path.

    Raises:
        UsageError: a suffix other than .html, .md and .json.
        OutputError: the file cannot be written; nothing half-written is left.
    """
    target = Path(path)
    return write_text(target, renderer_for(target)(plan))


def renderer_for(path: Path) -> Callable[[Plan], str]:
    """The renderer that the suffix of ``path`` names.

    Raises:
        UsageError: no renderer has that suffix; the message lists all of them.
    """
    if path.suffix not in _RENDERERS:
        raise UsageError(
            f"no report has the suffix {path.suffix!r} of {path}; use one of "
            f"{', '.join(_RENDERERS)}, as in {path.with_suffix('.html').name}"
            if path.name
            else "a report needs a file name that ends in " + ", ".join(_RENDERERS)
        )
    return _RENDERERS[path.suffix]


def render_html(plan: Plan) -> str:
    """The report as one self-contained HTML document."""
    from advisor.report.html import render_document

    return render_document(report_data(plan))


def render_markdown(plan: Plan) -> str:
    """The report as Markdown."""
    from advisor.report.markdown import render_markdown as render
    from advisor.report.page import lay_out

    return render(lay_out(report_data(plan)))


def render_json(plan: Plan) -> str:
    """``ReportData`` as JSON: sorted keys, two spaces, a final newline."""
    document = dataclasses.asdict(report_data(plan))
    return json.dumps(document, sort_keys=True, indent=2, allow_nan=False) + "\n"


def report_text(plan: Plan, width: int = 120) -> str:
    """The report as plain text, ``width`` columns wide."""
    from rich.console import Console

    from advisor.report.terminal import print_plan

    buffer = io.StringIO()
    print_plan(Console(file=buffer, width=width, color_system=None), plan)
    return buffer.getvalue()


_RENDERERS: Final[dict[str, Callable[[Plan], str]]] = {
    ".html": render_html,
    ".md": render_markdown,
    ".json": render_json,
}
