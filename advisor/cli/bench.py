"""``advisor bench``: a compiled plan beside its float model, timed and weighed on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advisor.cli.output import JsonFlag, Listing, print_listing

if TYPE_CHECKING:
    from advisor.targets.benchmark import Benchmark


def bench_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder that `advisor compile` wrote.")
    ],
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of one operator; default: the plan's.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Default: the plan's.")] = None,
    sequence: Annotated[int | None, typer.Option(min=1, help="Default: the plan's.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.01, help="To spend on timing; default: 10.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the JSON to this file.")
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show progress on a terminal.")] = True,
    as_json: JsonFlag = False,
) -> None:
    """Latency, throughput and memory of a compiled plan and of its float model."""
    from advisor.atomic import check_writable, write_text
    from advisor.cli.progress import show_progress
    from advisor.targets.base import Artifact

    if output is not None:
        check_writable(output)
    with show_progress(progress) as report:
        found = Artifact.load(folder).benchmark(
            batch=batch, sequence=sequence, threads=threads, seconds=seconds, progress=report
        )
    listing = show_benchmark(found)
    print_listing(listing, as_json=as_json)
    if output is not None:
        write_text(output, listing.to_json() + "\n")
        typer.echo(f"benchmark written to {output}", err=True)


def show_benchmark(found: Benchmark) -> Listing:
    """The two models side by side, one quantity per row."""
    from advisor.report.units import format_bytes, format_number, format_seconds

    models = (found.float_model, found.plan)
    ratio = found.latency_ratio
    interval = f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
    rows = [
        _row("latency, median", [m.latency_s for m in models], format_seconds, interval),
        _row("latency, least", [m.latency_min_s for m in models], format_seconds),
        _row("latency, 9 of 10 within", [m.latency_p90_s for m in models], format_seconds),
        _row("samples per second", [m.throughput_per_s for m in models], format_number),
        _row("files", [m.file_bytes for m in models], format_bytes),
    ]
    memories = [model.memory for model in models if model.memory is not None]
    if len(memories) == len(models):
        rows += [
            _row("memory after opening", [m.resident_bytes for m in memories], format_bytes),
            _row("memory, peak of opening", [m.loading_peak_bytes for m in memories], format_bytes),
            _row("memory, peak of running", [m.running_peak_bytes for m in memories], format_bytes),
        ]
    threads = "the runtime's choice of" if found.threads is None else str(found.threads)
    lines = [
        f"batch {found.batch}, {threads} thread(s), {found.executed_by} on {found.cpu}",
        f"latency: {found.rounds} rounds in turns; in brackets 95 % confidence of the ratio",
    ]
    if memories:
        lines.append(
            "memory: growth of a process of its own beyond the "
            f"{format_bytes(memories[0].runtime_bytes)} of the runtime itself"
        )
    else:
        lines.append("memory: this system does not tell a process its own")
    return Listing(
        columns=("", "float", "plan", "plan / float"),
        rows=tuple(rows),
        document=dataclasses.asdict(found),
        lines=tuple(lines),
    )


def _row(
    title: str, values: Sequence[float], write: Callable[[float], str], ratio: str = ""
) -> tuple[str, ...]:
    first, second = values
    quotient = f"{second / first:.2f}" if first > 0 else "-"
    return title, write(first), write(second), ratio or quotient
