"""The report as one HTML file: no external resource, readable on a phone, tables that sort."""

from __future__ import annotations

from html import escape

from advisor.report.data import LayerRow, ReportData
from advisor.report.page import Page, lay_out
from advisor.report.section import Cell, Section, Table
from advisor.report.units import format_bytes, format_percent

# Every rule starts at .advisor-report, because a notebook shows this page inside its own.
_STYLE = """
.advisor-report{--line:#8886;--soft:#8882;font:16px/1.5 system-ui,sans-serif;max-width:76rem;
margin:0 auto;padding:1rem;overflow-wrap:anywhere}
.advisor-report h1{font-size:1.6rem;line-height:1.2}
.advisor-report h2{font-size:1.2rem;margin-top:2rem}
.advisor-report .alarm{border:3px solid #c00;border-radius:.4rem;background:#fdd;color:#400;
padding:.8rem;font-weight:600}
.advisor-report dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.8rem}
.advisor-report dt{font-size:.85rem}
.advisor-report dd{margin:0;font-weight:600}
.advisor-report .scroll{overflow-x:auto}
.advisor-report table{border-collapse:collapse;font-size:.9rem;min-width:100%}
.advisor-report caption{text-align:left;padding:.3rem 0}
.advisor-report th,.advisor-report td{border-bottom:1px solid var(--line);padding:.3rem .5rem;
text-align:left;vertical-align:top;overflow-wrap:normal}
.advisor-report thead th{background:var(--soft);white-space:nowrap}
.advisor-report .number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.advisor-report .prose{min-width:18rem}
.advisor-report th button{all:unset;cursor:pointer;font-weight:700}
.advisor-report th button:focus-visible{outline:2px solid}
.advisor-report th[aria-sort=ascending] button::after{content:" ▲"}
.advisor-report th[aria-sort=descending] button::after{content:" ▼"}
.advisor-report svg{width:100%;height:auto;max-width:60rem}
"""

_PROSE = 28
"""Characters from which a cell is prose: it gets room, or a narrow page makes it a tall thread."""

_PAGE_STYLE = ":root{color-scheme:light dark}body{margin:0}"

_SCRIPT = """
for (const table of document.querySelectorAll(".advisor-report table.sorts:not([data-ready])")) {
  table.dataset.ready = "1";
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
      const order = (a, b) => {
        const numbers = Number(a) - Number(b);
        return Number.isNaN(numbers) ? String(a).localeCompare(String(b)) : numbers;
      };
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => (up ? 1 : -1) * order(key(a), key(b)));
      table.tBodies[0].append(...rows);
    });
  });
}
"""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def render_document(data: ReportData) -> str:
    """A complete page; every text that comes from the plan is escaped."""
    page = lay_out(data)
    body = "\n".join(
        [
            f"<h1>{escape(page.title)}</h1>",
            f"<p>{escape(page.outcome)}</p>",
            *(f'<p class="alarm" role="alert">{escape(alarm)}</p>' for alarm in page.alarms),
            _facts(page),
            *(_section(section, data) for section in page.sections),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(page.title)}</title>\n<style>{_PAGE_STYLE}{_STYLE}</style>\n</head>\n"
        f'<body>\n<main class="advisor-report">\n{body}\n</main>\n'
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _facts(page: Page) -> str:
    pairs = (
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>"
        for label, value in page.facts
    )
    return f"<dl>{''.join(pairs)}</dl>"


def _section(section: Section, data: ReportData) -> str:
    is_layers = section.title == "Layers"
    parts = [f"<section>\n<h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in section.paragraphs]
    if is_layers and data.layers:
        parts.append(_draw_layers(data.layers))
    if section.table is not None:
        parts.append(_table(section.table, sorts=is_layers))
    return "\n".join([*parts, "</section>"])


def _table(table: Table, *, sorts: bool) -> str:
    heads = "".join(
        f'<th scope="col"{_number_class(index, table)}>{escape(name)}</th>'
        for index, name in enumerate(table.columns)
    )
    rows = "\n".join(
        f"<tr>{''.join(_cell(index, cell, table) for index, cell in enumerate(row))}</tr>"
        for row in table.rows
    )
    label = escape(table.caption)
    kind = ' class="sorts"' if sorts else ""
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">\n<table{kind}>'
        f"<caption>{label}</caption>\n<thead><tr>{heads}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _cell(index: int, cell: Cell, table: Table) -> str:
    sort = "" if cell.sort is None else f' data-sort="{cell.sort!r}"'
    hint = f' title="{escape(cell.hint)}"' if cell.hint else ""
    if index == 0:
        return f'<th scope="row"{sort}{hint}>{escape(cell.text)}</th>'
    kind = _number_class(index, table) or (' class="prose"' if len(cell.text) > _PROSE else "")
    return f"<td{kind}{sort}{hint}>{escape(cell.text)}</td>"


def _number_class(index: int, table: Table) -> str:
    return ' class="number"' if index in table.numeric else ""


def _draw_layers(layers: tuple[LayerRow, ...]) -> str:
    """Two bars per layer, bytes and divergence share, each against the largest of its kind."""
    most_bytes = max(layer.size_bytes for layer in layers) or 1
    most_share = max(layer.divergence_share for layer in layers) or 1.0
    bars: list[str] = []
    for index, layer in enumerate(layers):
        top = 20 * index
        text = (
            f"{layer.name}: {layer.scheme}, {format_bytes(layer.size_bytes)}, "
            f"{format_percent(layer.divergence_share)} of the divergence"
        )
        bars.append(
            f"<g><title>{escape(text)}</title>"
            f'<rect x="0" y="{top}" width="600" height="18" fill="transparent"/>'
            f'<rect x="0" y="{top}" width="{600 * layer.size_bytes / most_bytes:.1f}" height="8" '
            f'fill="#3b7dd8"/><rect x="0" y="{top + 9}" '
            f'width="{600 * layer.divergence_share / most_share:.1f}" height="8" '
            f'fill="#d9822b"/></g>'
        )
    return (
        "<details><summary>Chart: bytes (blue) and share of the divergence (orange) per layer, in "
        f'the order of the table</summary>\n<svg viewBox="0 0 600 {20 * len(layers)}" role="img" '
        f'aria-label="Bytes and divergence share per layer">{"".join(bars)}</svg></details>'
    )
