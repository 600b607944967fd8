"""Results as Markdown: tables of variants and claims."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.claims import Verdict, base_ratio, points_of


def load_results(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """The results of ``compare`` that there are, in this order."""
    found = [read_result(folder / f"{name}.json") for name in names]
    return [result for result in found if result is not None]


def read_result(file: Path) -> Any:
    """What a benchmark wrote; None where it was not run."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def machine(results: Sequence[Mapping[str, Any]], packages: Sequence[str]) -> str:
    """One line per machine that results come from: they must not be mixed unsaid."""
    lines: dict[str, None] = {}
    for result in results:
        machine = result["machine"]
        versions = machine["versions"]
        named = ", ".join(f"{n} {versions[n]}" for n in packages if n in versions)
        features = " ".join(machine["features"])
        lines[
            f"Measured on {machine['cores']} cores of {machine['cpu']} ({features}); {named}.\n"
        ] = None
    return "\n".join(lines)


def claims(verdicts: Sequence[Verdict]) -> str:
    """How often each claim holds, and every case."""
    rows: list[list[str]] = []
    for claim in dict.fromkeys(verdict.claim for verdict in verdicts):
        about = [verdict for verdict in verdicts if verdict.claim == claim]
        holding = [verdict for verdict in about if verdict.holds]
        rows.append([claim, f"{len(holding)} of {len(about)}"])
    detail = [
        [v.claim, v.case, str(v.threads), "yes" if v.holds else "**no**", v.numbers]
        for v in verdicts
    ]
    return (
        table(["claim", "holds"], rows)
        + "\n### Each case\n\n"
        + table(["claim", "model", "threads", "holds", "numbers"], detail)
    )


def variants(result: Mapping[str, Any], threads: str) -> str:
    """Every file that was timed at one number of threads."""
    timings = result["timings"][threads]
    base = base_ratio(points_of(result, int(threads)))
    qualities = list(dict.fromkeys(name for row in result["rows"] for name in row["quality"]))
    split = any("partitions" in row for row in result["rows"])
    rows: list[list[str]] = []
    for row in result["rows"]:
        timing = timings.get(row["name"])
        if (
            row["failure"] is not None
            or timing is None
            or row["timed_at"] not in (None, int(threads))
        ):
            continue
        interval = f"{base / timing['high']:.2f} to {base / timing['low']:.2f}"
        rows.append(
            [
                row["name"],
                f"{row['size_bytes'] / 1e6:.3f}",
                f"{base / timing['ratio']:.2f}x",
                interval,
                f"{timing['median_s'] * 1e3:.4g}",
                f"{row['divergence']:.2g}",
                *([f"{row['partitions']} + {row['left_out']}"] if split else []),
                *(f"{row['quality'].get(name, float('nan')):.4g}" for name in qualities),
                ", ".join(f"{n} {s}" for s, n in row.get("schemes", {}).items()),
            ]
        )
    heads = ["variant", "MB", "speed", "interval", "ms", "divergence"]
    heads += ["partitions"] if split else []
    heads += [*qualities, "layers"]
    return table(heads, rows)


def failures(result: Mapping[str, Any]) -> list[str]:
    """Why there is no file of some variants."""
    failed = [row for row in result["rows"] if row["failure"] is not None]
    lines = [f"- {row['name']}: {' '.join(row['failure'].split())}" for row in failed]
    return ["No file:\n\n" + "\n".join(lines) + "\n"] if lines else []


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped) + "\n"
