"""Compare our plans with ONNX Runtime's own quantizers, one JSON per model.

    python -m benchmarks.onnxruntime.compare [CASE ...] [--target host] [--threads 1 2]

A case whose result exists is skipped (``--redo`` makes it anew), and each case runs in a process of
its own, so that a run can be stopped and taken up again. Files in between go to ``--work``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.command import Options, parse_arguments, run, say, slug
from benchmarks.models import Case
from benchmarks.onnxruntime.floatmodel import FEEDS, export_float
from benchmarks.onnxruntime.measure import OnnxVariant
from benchmarks.onnxruntime.peers import METHODS
from benchmarks.onnxruntime.write import write_onnx
from benchmarks.peers import make_peer
from benchmarks.plans import (
    MORE_BYTES,
    SLACK,
    Advisor,
    Ask,
    open_advisor,
    predicted_bytes,
    uniform_choices,
    write_choice,
)
from benchmarks.rows import (
    FLOAT,
    Row,
    at_equal_bytes,
    bytes_of,
    describe_machine,
    judge_accuracy,
    row_of_answer,
    time_rows,
)

RESULTS: Final = Path(__file__).with_name("results")
WORK: Final = Path("build/benchmarks/onnxruntime")


def compare(case: Case, options: Options) -> dict[str, Any]:
    """Make every variant of one case and measure all of them in the same way."""
    folder = options.work / case.name
    peers = _peers(case, folder)
    rows = list(peers)
    graph_bytes = 0.0
    for threads in options.threads:
        say(case, f"costs and sensitivities for threads={threads}")
        with open_advisor(
            case,
            target=options.target,
            threads=threads,
            trials=options.trials,
            write=write_onnx,
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
        timings[str(threads)] = time_rows(case, rows, threads, options.seconds)
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
    rows = [Row(name=FLOAT, origin="float", variant=OnnxVariant(name=FLOAT, path=source))]
    for method in METHODS:
        say(case, f"ONNX Runtime, {method}")
        path = folder / "peers" / f"{slug(method)}.onnx"
        peer = make_peer("benchmarks.onnxruntime.peers", method, source, folder / FEEDS, path)
        variant = None if peer.failure else OnnxVariant(name=method, path=peer.path)
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
        variant = write_choice(evidence, name, choice, path, write_onnx, case.example)
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
        quick = time_rows(case, running, threads, options.seconds / 4)
        fastest = min(running[1:], key=lambda row: quick[row.name]["ratio"], default=None)
        asks += _questions(fastest, graph_bytes)
        if threads == options.threads[0]:
            asks += at_equal_bytes(running[1:], graph_bytes)
    rows: list[Row] = []
    for ask in asks:
        say(case, f"plan for threads={threads}: {ask.name}")
        path = folder / "plans" / f"{threads}-{slug(ask.name)}.onnx"
        timed_at = None if ask.for_all_threads else threads
        row = row_of_answer(advisor.ask(ask, path), threads=threads, timed_at=timed_at)
        rows.append(row.checked(case))
    return rows


def _questions(fastest: Row | None, graph_bytes: float) -> list[Ask]:
    """What is asked for every number of threads."""
    asks = [
        Ask(name="auto", objective="auto"),
        Ask(name="all-int8 latency + 5 %", objective="accuracy", budget={"latency": SLACK}),
    ]
    if fastest is not None:
        size = {"size": bytes_of(fastest) * MORE_BYTES - graph_bytes}
        asks.append(Ask(name="latency, fastest peer's bytes", objective="latency", budget=size))
    return asks


def main() -> int:
    """Compare the named cases, or all."""
    arguments = parse_arguments(str(__doc__), RESULTS, WORK, threads=(1, 2))
    return run(__spec__.name, arguments, compare)


if __name__ == "__main__":
    torch.set_num_threads(2)
    sys.exit(main())
