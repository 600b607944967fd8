"""Which architectures go all the way through ONNX Runtime, and why the others do not.

    python -m benchmarks.onnxruntime.architectures            # all, about an hour on two cores
    python -m benchmarks.onnxruntime.architectures bert swin  # these; the other rows stay

Every model is captured, planned under free choice, compiled, and then emitted under each uniform
scheme; every artifact is read back, executed and held against the simulation. Writes
architectures.json beside this file, after each model, and docs/architectures.md. The weights are
random: this is about structure, never about accuracy or speed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

SCHEMES: Final = ("w8a8", "w8", "w4-g32")
ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = Path(__file__).with_suffix(".json")
PAGE: Final = ROOT / "docs" / "architectures.md"

INTRODUCTION: Final = """# Architectures

Every model below is the class that transformers or torch ships, unmodified, built from a small
configuration with random weights. For each: the captured graph is compared with the model, a plan
is made under free choice and compiled, and then all layers that can take it are put under each
uniform scheme. Every artifact is read back layer by layer, executed by ONNX Runtime, and compared
with the simulation. Random weights say nothing about accuracy or speed.

"dynamic" are the dimensions that may change after compiling. "float" counts layers without a
quantized form here, by operator. An output that is left out is a key-value cache or another object
that a graph cannot return: plans are for one forward pass without a cache.

Written by `python -m benchmarks.onnxruntime.architectures`.

"""


def main(names: Sequence[str]) -> None:
    """Examine the architectures named (all when none is) and write results and page."""
    os.environ["ADVISOR_MEASURE"] = "never"  # costs have no part in this
    import torch

    from tests.zoo.models import ARCHITECTURES
    from tests.zoo.sweep import examine

    torch.set_num_threads(1)
    known = {entry.name for entry in ARCHITECTURES}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    rows = _read()
    for entry in ARCHITECTURES:
        if names and entry.name not in names:
            continue
        outcome = examine(entry, SCHEMES)
        rows[entry.name] = {**asdict(outcome), "ok": outcome.ok}
        print(f"{entry.name}: {'ok' if outcome.ok else outcome.problem or outcome.schemes}")
        order = [entry.name for entry in ARCHITECTURES if entry.name in rows]
        _write({name: rows[name] for name in order})


def _read() -> dict[str, dict[str, Any]]:
    if not RESULTS.exists():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text())["architectures"]
    return found


def _write(rows: Mapping[str, Mapping[str, Any]]) -> None:
    packages = ("torch", "transformers", "onnxruntime", "onnx")
    versions = {name: version(name) for name in packages}
    text = json.dumps({"versions": versions, "architectures": rows}, indent=2)
    RESULTS.write_text(text + "\n")
    PAGE.write_text(render(rows, versions))


def render(rows: Mapping[str, Mapping[str, Any]], versions: Mapping[str, str]) -> str:
    """The page as Markdown."""
    passed = sum(bool(row["ok"]) for row in rows.values())
    lines = [
        f"**{passed} of {len(rows)}** went all the way, with "
        f"{', '.join(f'{name} {number}' for name, number in versions.items())}.",
        "",
        "| architecture | class | layers | float | dynamic | left out | verified | result |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(name, row) for name, row in rows.items()),
    ]
    return INTRODUCTION + "\n".join(lines) + "\n"


def _row(name: str, row: Mapping[str, Any]) -> str:
    kept = ", ".join(f"{count} {reason.split()[0]}" for reason, count in row["kept"].items())
    verified = ", ".join(scheme for scheme, problem in row["schemes"].items() if not problem)
    problems = [f"{scheme}: {text}" for scheme, text in row["schemes"].items() if text]
    result = "ok" if row["ok"] else row["problem"] or "; ".join(problems)
    cells = (
        name,
        f"`{row['source']}`",
        f"{row['quantizable']} of {row['layers']}" if row["layers"] else "",
        kept,
        ", ".join(row["dynamic"]),
        ", ".join(f"`{part}`" for part in row["left_out"]),
        verified,
        result.replace("|", "/"),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main(sys.argv[1:])
