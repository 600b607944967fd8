"""Compare our plans with ONNX Runtime's own quantizers, one JSON per model.

    python -m benchmarks.onnxruntime.compare [CASE ...] [--target host] [--threads 1 2]

A case whose result exists is skipped (``--redo`` makes it anew), and each case runs in a process of
its own, so that a run can be stopped and taken up again. Files in between go to ``--work``.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import torch

from advisor.atomic import write_text
from benchmarks.onnxruntime.floatmodel import FEEDS, export_float
from benchmarks.onnxruntime.measure import Variant, caller, open_variant
from benchmarks.onnxruntime.models import Case, case_names, make_case
from benchmarks.onnxruntime.peers import METHODS, make_peer
from benchmarks.onnxruntime.plans import (
    MORE_BYTES,
    SLACK,
    Advisor,
    Ask,
    fastest_int8,
    open_advisor,
    predicted_bytes,
    uniform_choices,
    write_choice,
)
from benchmarks.onnxruntime.rows import (
    FLOAT,
    Row,
    describe_machine,
    digest_of,
    judge_accuracy,
    row_of_answer,
)
from benchmarks.onnxruntime.timing import time_variants

RESULTS: Final = Path(__file__).with_name("results")
WORK: Final = Path("build/benchmarks/onnxruntime")
MERGED: Final = 1.02
"""Peers whose bytes differ by less than this share a size budget, the smallest of theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """seconds: of each final timing. trials: of each plan. samples: evaluation batches, or all."""

    target: str
    threads: tuple[int, ...]
    seconds: float
    trials: int
    samples: int | None
    work: Path


def compare(case: Case, options: Options) -> dict[str, Any]:
    """Make every variant of one case and measure all of them in the same way."""
    folder = options.work / case.name
    peers = _peers(case, folder)
    rows = list(peers)
    graph_bytes = 0.0
    for threads in options.threads:
        say(case, f"costs and sensitivities for threads={threads}")
        with open_advisor(
            case, target=options.target, threads=threads, trials=options.trials
        ) as advisor:
            if threads == options.threads[0]:
                uniform, graph_bytes = _uniform(case, advisor, folder)
                rows += uniform
            rows += _plans(case, advisor, folder, peers, graph_bytes, threads, options)
    say(case, "divergence and quality")
    rows = judge_accuracy(case, rows, options.samples)
    timings: dict[str, Any] = {}
    for threads in options.threads:
        say(case, f"timing, threads={threads}")
        timings[str(threads)] = _time(case, rows, threads, options.seconds)
    return {
        "case": case.name,
        "is_trained": case.is_trained,
        "kind": case.kind,
        "batch": case.batch,
        "target": options.target,
        "machine": describe_machine(),
        "rows": [row.record() for row in rows],
        "timings": timings,
    }


def _peers(case: Case, folder: Path) -> list[Row]:
    """The float model and what each tool makes of it."""
    say(case, "float model")
    source = export_float(case, folder / "float.onnx")
    rows = [Row(name=FLOAT, origin="float", variant=Variant(name=FLOAT, path=source))]
    for method in METHODS:
        say(case, f"ONNX Runtime, {method}")
        path = folder / "peers" / f"{slug(method)}.onnx"
        peer = make_peer(method, source, folder / FEEDS, path)
        variant = None if peer.failure else Variant(name=method, path=peer.path)
        rows.append(Row(name=method, origin="peer", variant=variant, failure=peer.failure))
    return [row.checked(case) for row in rows]


def _uniform(case: Case, advisor: Advisor, folder: Path) -> tuple[list[Row], float]:
    """Uniform assignments, and the bytes of a file that are no constants."""
    evidence = advisor.evidence
    rows: list[Row] = []
    graph_bytes = 0.0
    for scheme, choice in uniform_choices(evidence).items():
        name = f"uniform {scheme}"
        path = folder / "uniform" / f"{scheme}.onnx"
        variant = write_choice(evidence, name, choice, path, example=case.example)
        graph_bytes = max(graph_bytes, variant.size_bytes - predicted_bytes(evidence, choice))
        rows.append(Row(name=name, origin="uniform", variant=variant))
    return [row.checked(case) for row in rows], graph_bytes


def _plans(
    case: Case,
    advisor: Advisor,
    folder: Path,
    peers: Sequence[Row],
    graph_bytes: float,
    threads: int,
    options: Options,
) -> list[Row]:
    """The advisor's answers for one number of threads; the first number gets more questions."""
    asks = [Ask(name="latency", objective="latency")]
    if case.is_trained:
        running = [row for row in peers if row.variant is not None]
        quick = _time(case, running, threads, options.seconds / 4)
        fastest = min(running[1:], key=lambda row: quick[row.name]["ratio"], default=None)
        asks += _questions(fastest, fastest_int8(advisor), graph_bytes)
        if threads == options.threads[0]:
            asks += _at_equal_bytes(running[1:], graph_bytes)
    rows: list[Row] = []
    for ask in asks:
        say(case, f"plan for threads={threads}: {ask.name}")
        path = folder / "plans" / f"{threads}-{slug(ask.name)}.onnx"
        timed_at = None if ask.for_all_threads else threads
        row = row_of_answer(advisor.ask(ask, path), threads=threads, timed_at=timed_at)
        rows.append(row.checked(case))
    return rows


def _questions(fastest: Row | None, int8_s: float, graph_bytes: float) -> list[Ask]:
    """What is asked for every number of threads."""
    slower = {"latency": int8_s * SLACK}
    asks = [
        Ask(name="auto", objective="auto"),
        Ask(name="all-int8 latency + 5 %", objective="accuracy", budget=slower),
    ]
    if fastest is not None:
        size = {"size": _bytes_of(fastest) * MORE_BYTES - graph_bytes}
        asks.append(Ask(name="latency, fastest peer's bytes", objective="latency", budget=size))
    return asks


def _at_equal_bytes(peers: Sequence[Row], graph_bytes: float) -> list[Ask]:
    """The default objective inside the bytes of every peer."""
    asks: list[Ask] = []
    last = 0.0
    for row in sorted(peers, key=_bytes_of):
        if _bytes_of(row) > last * MERGED:
            last = _bytes_of(row)
            size = {"size": last - graph_bytes}
            name = f"auto, bytes of {row.name}"
            asks.append(Ask(name=name, objective="auto", budget=size, for_all_threads=True))
    return asks


def _bytes_of(row: Row) -> float:
    return 0.0 if row.variant is None else float(row.variant.size_bytes)


def _time(case: Case, rows: Sequence[Row], threads: int, seconds: float) -> dict[str, Any]:
    """Every distinct file in one interleaved run; equal files share their numbers."""
    timed = {
        row.name: row.variant
        for row in rows
        if row.variant is not None and row.timed_at in (None, threads)
    }
    digests = {name: digest_of(variant) for name, variant in timed.items()}
    first: dict[str, str] = {}
    for name, digest in digests.items():
        first.setdefault(digest, name)
    calls = {
        name: caller(open_variant(timed[name], threads), case.example) for name in first.values()
    }
    found = time_variants(calls, reference=FLOAT, seconds=seconds)
    return {name: found[first[digest]].record() for name, digest in digests.items()}


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"\W+", "-", name).strip("-")


def say(case: Case, what: str) -> None:
    """One line of progress on standard error."""
    print(f"{perf_counter():8.0f} s  {case.name}: {what}", file=sys.stderr, flush=True)


def run_all(names: Sequence[str], arguments: argparse.Namespace) -> int:
    """Every case in its own process; returns how many failed."""
    failed: list[str] = []
    passed_on = sys.argv[1:]
    for name in arguments.cases:
        passed_on = [each for each in passed_on if each != name]
    for name in names:
        if (arguments.out / f"{name}.json").exists() and not arguments.redo:
            print(f"{name}: kept; --redo makes it anew", file=sys.stderr)
            continue
        command = [sys.executable, "-m", __spec__.name, name, *passed_on, "--here"]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(case_names()))
    parser.add_argument("--target", default="host")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=12.0, help="of every final timing")
    parser.add_argument("--trials", type=int, default=12, help="of every plan's search")
    parser.add_argument("--samples", type=int, help="evaluation batches (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--redo", action="store_true", help="also cases that have a result")
    parser.add_argument("--here", action="store_true", help="one case, in this process")
    return parser.parse_args()


def main() -> int:
    """Compare the named cases, or all."""
    arguments = parse_arguments()
    names = arguments.cases or case_names()
    if not arguments.here:
        return run_all(names, arguments)
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
        command = f"python -m {__spec__.name} {shlex.join(sys.argv[1:-1])}"
        result = {"command": command, **compare(make_case(name), options)}
        write_text(arguments.out / f"{name}.json", json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(2)
    sys.exit(main())
