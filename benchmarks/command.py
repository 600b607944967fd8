"""The command line of a comparison: one process and one JSON file per case."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from advisor.atomic import write_text
from benchmarks.models import Case, case_names, make_case


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """seconds: of each final timing. trials: of each plan. samples: evaluation batches, or all."""

    target: str
    threads: tuple[int, ...]
    seconds: float
    trials: int
    samples: int | None
    work: Path


Compare = Callable[[Case, Options], dict[str, Any]]
"""Makes every variant of one case and measures all of them; a record that JSON takes."""


def run(program: str, arguments: argparse.Namespace, compare: Compare) -> int:
    """Compare the named cases, each in a process of its own; returns how many failed."""
    names = arguments.cases
    if not arguments.here:
        return _run_all(program, names, arguments)
    options = Options(
        target=arguments.target,
        threads=tuple(arguments.threads),
        seconds=arguments.seconds,
        trials=arguments.trials,
        samples=arguments.samples,
        work=arguments.work,
    )
    for name in names:
        shutil.rmtree(options.work / name, ignore_errors=True)
        command = f"python -m {program} {shlex.join(sys.argv[1:-1])}"
        result = {"command": command, **compare(make_case(name), options)}
        write_text(arguments.out / f"{name}.json", json.dumps(result, indent=1) + "\n")
    return 0


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"\W+", "-", name).strip("-")


def say(case: Case, what: str) -> None:
    """One line of progress on standard error."""
    print(f"{perf_counter():8.0f} s  {case.name}: {what}", file=sys.stderr, flush=True)


def _run_all(program: str, names: Sequence[str], arguments: argparse.Namespace) -> int:
    """Every case in its own process; returns how many failed."""
    failed: list[str] = []
    passed_on = sys.argv[1:]
    for name in arguments.cases:
        passed_on = [each for each in passed_on if each != name]
    for name in names:
        if (arguments.out / f"{name}.json").exists() and not arguments.redo:
            print(f"{name}: kept; --redo makes it anew", file=sys.stderr)
            continue
        command = [sys.executable, "-m", program, name, *passed_on, "--here"]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


def parse_arguments(
    description: str,
    results: Path,
    work: Path,
    *,
    threads: Sequence[int],
    cases: Sequence[str] | None = None,
) -> argparse.Namespace:
    """The command line of a comparison. cases: the default ones; None: all."""
    parser = argparse.ArgumentParser(description=description)
    names = list(cases or case_names())
    parser.add_argument("cases", nargs="*", default=names, metavar="CASE", help=", ".join(names))
    parser.add_argument("--target", default="host")
    parser.add_argument("--threads", type=int, nargs="+", default=list(threads))
    parser.add_argument("--seconds", type=float, default=40.0, help="of every final timing")
    parser.add_argument("--trials", type=int, default=12, help="of every plan's search")
    parser.add_argument("--samples", type=int, help="evaluation batches (default: all)")
    parser.add_argument("--out", type=Path, default=results)
    parser.add_argument("--work", type=Path, default=work)
    parser.add_argument("--redo", action="store_true", help="also cases that have a result")
    parser.add_argument("--here", action="store_true", help="one case, in this process")
    return parser.parse_args()
