"""Compare our plans with uniform ones and with ai-edge-quantizer's recipes, one JSON per model.

    python -m benchmarks.tflite.compare [CASE ...] [--target host] [--threads 1]

A case whose result exists is skipped (``--redo`` makes it anew), and each case runs in a process of
its own, so that a run can be stopped and taken up again. Files in between go to ``--work``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import torch

from benchmarks.command import Options, parse_arguments, run, say, slug
from benchmarks.measure import caller
from benchmarks.models import Case
from benchmarks.peers import make_peer
from benchmarks.plans import (
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
    describe_machine,
    judge_accuracy,
    row_of_answer,
    time_rows,
)
from benchmarks.tflite.floatmodel import FEEDS, export_float
from benchmarks.tflite.measure import TfliteVariant, write_tflite
from benchmarks.tflite.peers import METHODS

RESULTS: Final = Path(__file__).with_name("results")
WORK: Final = Path("build/benchmarks/tflite")
CASES: Final = (
    "digits_cnn",
    "digits_mobilenet",
    "digits_vit",
    "minilm",
    "resnet18",
    "mobilenet_v2",
)
PACKAGES: Final = ("ai-edge-litert", "litert-torch", "ai-edge-quantizer")
MOST_S: Final = 60.0
"""Time that one pass over the evaluation data may take."""

TRIES: Final = 4
ALIGNED: Final = 64
"""Bytes that a file may grow by where its buffers are aligned."""

UNIFORM: Final = ("w8a8", "w8a8-dynamic", "w4a8-dynamic", "w8", "w4")
"""Schemes that are tried wherever a layer can take them."""


def compare(case: Case, options: Options) -> dict[str, Any]:
    """Make every variant of one case and measure all of them in the same way."""
    folder = options.work / case.name
    rows = _peers(case, folder)
    peers = list(rows)
    for threads in options.threads:
        say(case, f"costs and sensitivities for threads={threads}")
        with open_advisor(
            case,
            target=options.target,
            runtime="tflite",
            threads=threads,
            trials=options.trials,
            write=write_tflite,
        ) as advisor:
            uniform, graph_bytes = _uniform(case, advisor, folder)
            rows += uniform if threads == options.threads[0] else []
            asks = [Ask(name="latency", objective="latency")]
            if case.is_trained:
                asks.append(Ask(name="auto", objective="auto"))
            for ask in asks:
                say(case, f"plan for threads={threads}: {ask.name}")
                path = folder / "plans" / f"{threads}-{slug(ask.name)}.tflite"
                row = row_of_answer(advisor.ask(ask, path), threads=threads, timed_at=threads)
                rows.append(row.checked(case))
            if case.is_trained and threads == options.threads[0]:
                rows += _at_equal_bytes(case, advisor, folder, peers[1:], graph_bytes, threads)
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
        "machine": describe_machine(PACKAGES),
        "rows": [row.record() for row in rows],
        "timings": timings,
    }


def _peers(case: Case, folder: Path) -> list[Row]:
    """The float model and what each recipe makes of it."""
    say(case, "float model")
    source = export_float(case, folder / "float.tflite")
    rows = [Row(name=FLOAT, origin="float", variant=TfliteVariant(name=FLOAT, path=source))]
    for method in METHODS:
        say(case, f"ai-edge-quantizer, {method}")
        path = folder / "peers" / f"{method}.tflite"
        peer = make_peer("benchmarks.tflite.peers", method, source, folder / FEEDS, path)
        variant = None if peer.failure else TfliteVariant(name=method, path=peer.path)
        rows.append(Row(name=method, origin="peer", variant=variant, failure=peer.failure))
    return [_in_time(case, row.checked(case)) for row in rows]


def _in_time(case: Case, row: Row) -> Row:
    """The row, or its failure where the evaluation data would take too long.

    LiteRT has reference kernels for int16 activations, some 30 times as slow as float32.
    """
    if row.variant is None:
        return row
    call = caller(row.variant.open(1), case.example)
    begin = perf_counter()
    call()
    seconds = perf_counter() - begin
    if seconds * len(case.evaluation) <= MOST_S:
        return row
    reason = f"not compared: {seconds:.2g} s per call, on {len(case.evaluation)} of them"
    return replace(row, variant=None, failure=reason)


def _uniform(case: Case, advisor: Advisor, folder: Path) -> tuple[list[Row], float]:
    """Uniform assignments, and the least bytes of a file that are no constants."""
    evidence = advisor.evidence
    rows: list[Row] = []
    graph_bytes = float("inf")
    for scheme, choice in uniform_choices(evidence, UNIFORM).items():
        name = f"uniform {scheme}"
        path = folder / "uniform" / f"{scheme}.tflite"
        variant = write_choice(evidence, name, choice, path, write_tflite, case.example)
        graph_bytes = min(graph_bytes, variant.size_bytes - predicted_bytes(evidence, choice))
        rows.append(Row(name=name, origin="uniform", variant=variant))
    return [row.checked(case) for row in rows], graph_bytes


def _at_equal_bytes(
    case: Case,
    advisor: Advisor,
    folder: Path,
    peers: Sequence[Row],
    graph_bytes: float,
    threads: int,
) -> list[Row]:
    """The most accurate plan whose file is no larger than each recipe's.

    Budgets count constants. What a file holds besides them depends on the plan (static layers
    have more tensors), so a file that came out too large is planned again that much smaller.
    """
    able = [row for row in peers if row.variant is not None]
    rows: list[Row] = []
    for ask in at_equal_bytes(able, graph_bytes, objective="accuracy"):
        say(case, f"plan for threads={threads}: {ask.name}")
        path = folder / "plans" / f"{threads}-{slug(ask.name)}.tflite"
        assert ask.budget is not None  # it is what these are about
        size = float(ask.budget["size"])
        limit = size + graph_bytes
        answer = advisor.ask(ask, path)
        for _ in range(TRIES):
            if answer.variant is None or answer.variant.size_bytes <= limit:
                break
            size -= answer.variant.size_bytes - limit + ALIGNED
            answer = advisor.ask(replace(ask, budget={"size": size}), path)
        rows.append(row_of_answer(answer, threads=threads, timed_at=None).checked(case))
    return rows


def main() -> int:
    """Compare the named cases, or all."""
    arguments = parse_arguments(str(__doc__), RESULTS, WORK, threads=(1,), cases=CASES)
    return run(__spec__.name, arguments, compare)


if __name__ == "__main__":
    torch.set_num_threads(2)
    sys.exit(main())
