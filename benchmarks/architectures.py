"""Take the architectures of ``tests/zoo`` all the way through one runtime, and write down how far.

Every model runs in a process of its own, so that a converter that aborts or never ends costs that
model alone. What a runtime's list is made of is a ``Sweep``; those are in
``architectures.py`` of ``benchmarks/onnxruntime``, ``benchmarks/tflite`` and
``benchmarks/coreml``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
LIMIT_S: Final = 900

Row = Mapping[str, Any]
Columns = Mapping[str, Callable[[Row], str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One runtime's list. plans: what is emitted beside the free choice (``tests.zoo.sweep``).

    packages: whose versions are recorded. results, page: files to write. columns: of the page's
    table between the model's class and the result; by heading, the cell of a row. profile: what is
    planned for. free: whether the plan of free choice is compiled too.
    """

    runtime: str
    plans: tuple[str, ...]
    trials: int
    packages: tuple[str, ...]
    results: Path
    page: Path
    introduction: str
    columns: Columns = field(default_factory=dict[str, Callable[[Row], str]])
    profile: str = "intel-vnni"
    free: bool = True


def run(sweep: Sweep, names: Sequence[str]) -> None:
    """Examine the architectures named (all when none is) and write results and page."""
    from tests.zoo.models import ARCHITECTURES

    known = {entry.name: entry for entry in ARCHITECTURES}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    rows = _read(sweep)
    for entry in ARCHITECTURES:
        if names and entry.name not in names:
            continue
        row = _examine(sweep, entry.name)
        rows[entry.name] = {"name": entry.name, "source": entry.source, **row}
        print(f"{entry.name}: {result_of(rows[entry.name])}", flush=True)
        _write(sweep, {name: rows[name] for name in known if name in rows}, list(known))


def _examine(sweep: Sweep, name: str) -> dict[str, Any]:
    """One architecture's outcome, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.architectures", sweep.runtime, name]
    command += [sweep.profile, str(sweep.trials), str(int(sweep.free)), *sweep.plans]
    environment = {**os.environ, "ADVISOR_MEASURE": "never"}  # costs have no part in this
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _failed(f"did not end within {LIMIT_S} s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return _failed(f"ended with: {last}")
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def _failed(problem: str) -> dict[str, Any]:
    nothing: dict[str, Any] = {"layers": 0, "quantizable": 0, "kept": {}, "dynamic": []}
    return {**nothing, "left_out": [], "schemes": {}, "problem": problem, "ok": False}


def examine_here(
    runtime: str, name: str, profile: str, trials: str, free: str, *plans: str
) -> None:
    """Examine one architecture in this process and print its outcome as one line of JSON."""
    import torch

    from tests.zoo.models import architecture
    from tests.zoo.sweep import examine

    torch.set_num_threads(1)
    outcome = examine(
        architecture(name),
        plans,
        runtime=runtime,
        profile=profile,
        trials=int(trials),
        free=free == "1",
    )
    print(json.dumps({**asdict(outcome), "ok": outcome.ok}))


def _read(sweep: Sweep) -> dict[str, dict[str, Any]]:
    if not sweep.results.exists():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(sweep.results.read_text())["architectures"]
    return found


def _write(sweep: Sweep, rows: Mapping[str, Row], known: Sequence[str]) -> None:
    versions = {name: version(name) for name in sweep.packages}
    text = json.dumps({"versions": versions, "architectures": rows}, indent=2)
    sweep.results.write_text(text + "\n")
    sweep.page.write_text(render(sweep, rows, versions, known))


def render(
    sweep: Sweep, rows: Mapping[str, Row], versions: Mapping[str, str], known: Sequence[str]
) -> str:
    """The page as Markdown. known: every architecture; those without a row were not run."""
    passed = sum(bool(row["ok"]) for row in rows.values())
    missing = [name for name in known if name not in rows]
    headings = ("architecture", "class", *sweep.columns, "result")
    lines = [
        f"**{passed} of {len(rows)}** went all the way, with "
        f"{', '.join(f'{name} {number}' for name, number in versions.items())}.",
        *([f"Not run yet ({len(missing)}): {', '.join(missing)}."] if missing else []),
        "",
        f"| {' | '.join(headings)} |",
        f"|{'---|' * len(headings)}",
    ]
    for name, row in rows.items():
        cells = [cell(row) for cell in sweep.columns.values()]
        cells = [name, f"`{row['source']}`", *cells, result_of(row).replace("|", "/")]
        lines.append(f"| {' | '.join(cells)} |")
    return sweep.introduction + "\n".join(lines) + "\n"


def result_of(row: Row) -> str:
    """ "ok", or what went wrong, once where it is the same under every plan."""
    if row["ok"]:
        return "ok"
    problems: dict[str, list[str]] = {}
    for plan, text in row["schemes"].items():
        if text:
            problems.setdefault(text, []).append(plan)
    return row["problem"] or "; ".join(f"{', '.join(p)}: {text}" for text, p in problems.items())


def layers(row: Row) -> str:
    """How many layers can be quantized, of how many."""
    return f"{row['quantizable']} of {row['layers']}" if row["layers"] else ""


def kept(row: Row) -> str:
    """Layers without a quantized form, by operator."""
    return ", ".join(f"{count} {reason.split()[0]}" for reason, count in row["kept"].items())


def mixed(row: Row) -> str:
    """How many layers the plan that takes the schemes in turn has under each."""
    return counts(row.get("mixed", {}))


def counts(found: Mapping[str, int]) -> str:
    """ "2 w4, 3 w8"."""
    return ", ".join(f"{count} {name}" for name, count in sorted(found.items()))


def verified(row: Row) -> str:
    """The plans that were emitted, read back and executed without a difference."""
    return ", ".join(plan for plan, problem in row["schemes"].items() if not problem)


if __name__ == "__main__":
    examine_here(*sys.argv[1:])
