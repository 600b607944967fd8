"""One row of the comparison per file: what it is, its bytes, and how far its outputs are."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, Final

from torch import Tensor

from advisor.decide import package_versions
from advisor.doctor import read_cpu
from benchmarks.measure import Variant, caller, divergence_of, outputs_of, runner
from benchmarks.models import Case
from benchmarks.plans import Answer, Ask
from benchmarks.timing import time_variants

FLOAT: Final = "float32"
"""The reference of every ratio and divergence: the model as PyTorch exports it."""

MERGED: Final = 1.02
"""Peers whose bytes differ by less than this share a size budget, the smallest of theirs."""

ORIGINS: Final = ("float", "peer", "uniform", "plan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One variant.

    failure: why there is no file, or why it does not run. threads: what a plan was made for.
    timed_at: the only number of threads it is timed at; None: all. digest: SHA-256 of the file;
    rows with equal files share their numbers. said: how the file came about (schemes, outcome,
    prediction).
    """

    name: str
    origin: str
    variant: Variant | None
    failure: str | None = None
    threads: int | None = None
    timed_at: int | None = None
    digest: str = ""
    divergence: float | None = None
    quality: Mapping[str, float] = field(default_factory=dict[str, float])
    said: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def checked(self, case: Case) -> Row:
        """The row, or its failure when the runtime cannot run the file."""
        if self.variant is None:
            return self
        try:
            caller(self.variant.open(1), case.example)()
        except self.variant.errors as error:
            return replace(self, variant=None, failure=f"does not run: {error}")
        return self

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "origin": self.origin,
            "threads": self.threads,
            "timed_at": self.timed_at,
            "size_bytes": None if self.variant is None else self.variant.size_bytes,
            "divergence": self.divergence,
            "quality": dict(self.quality),
            "digest": self.digest[:12],
            "failure": self.failure,
            **({} if self.variant is None else self.variant.describe()),
            **self.said,
        }


def row_of_answer(answer: Answer, *, threads: int, timed_at: int | None) -> Row:
    """The row of a plan, or of the reason why there is none."""
    ask = answer.ask
    return Row(
        name=f"{ask.name} (threads={threads})",
        origin="plan",
        variant=answer.variant,
        failure=None if answer.variant is not None else answer.outcome,
        threads=threads,
        timed_at=timed_at,
        said={
            "objective": ask.objective,
            "budget": None if ask.budget is None else dict(ask.budget),
            "schemes": dict(answer.schemes),
            "outcome": answer.outcome,
            "predicted_s": answer.predicted_s,
        },
    )


def judge_accuracy(case: Case, rows: Sequence[Row], samples: int | None) -> list[Row]:
    """Fill in digest, divergence from the float model, and quality; the first row is the float's.

    samples: how many evaluation batches give the divergence; None: all.
    """
    batches = case.evaluation[:samples]
    references: list[Tensor] = []
    known: dict[str, Row] = {}
    judged: list[Row] = []
    for row in rows:
        if row.variant is None:
            judged.append(row)
            continue
        digest = row.variant.digest
        if digest not in known:
            session = row.variant.open(1)
            outputs = outputs_of(session, batches)
            references = references or outputs
            run = runner(session, list(case.example))
            known[digest] = replace(
                row,
                digest=digest,
                divergence=divergence_of(case, outputs, references),
                quality={} if case.quality is None else case.quality(run),
            )
        same = known[digest]
        judged.append(replace(row, digest=digest, divergence=same.divergence, quality=same.quality))
    return judged


def at_equal_bytes(peers: Sequence[Row], graph_bytes: float, objective: str = "auto") -> list[Ask]:
    """Questions for the best plan inside the bytes of every peer."""
    asks: list[Ask] = []
    last = 0.0
    for row in sorted(peers, key=bytes_of):
        if bytes_of(row) > last * MERGED:
            last = bytes_of(row)
            size = {"size": last - graph_bytes}
            name = f"{objective}, bytes of {row.name}"
            asks.append(Ask(name=name, objective=objective, budget=size, for_all_threads=True))
    return asks


def bytes_of(row: Row) -> float:
    """Bytes of the row's file, 0 where there is none."""
    return 0.0 if row.variant is None else float(row.variant.size_bytes)


def time_rows(case: Case, rows: Sequence[Row], threads: int, seconds: float) -> dict[str, Any]:
    """Every distinct file in one interleaved run; equal files share their numbers."""
    timed = {
        row.name: row.variant
        for row in rows
        if row.variant is not None and row.timed_at in (None, threads)
    }
    digests = {name: variant.digest for name, variant in timed.items()}
    first: dict[str, str] = {}
    for name, digest in digests.items():
        first.setdefault(digest, name)
    calls = {name: caller(timed[name].open(threads), case.example) for name in first.values()}
    found = time_variants(calls, reference=FLOAT, seconds=seconds, threads=threads)
    return {name: found[first[digest]].record() for name, digest in digests.items()}


def describe_machine(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Versions and processor: what the numbers depend on besides the model. packages: more whose
    version counts."""
    cpu = read_cpu()
    return {
        "cpu": cpu.model,
        "cores": cpu.cores,
        "features": list(cpu.features or ()),
        "python": platform.python_version(),
        "versions": package_versions() | {name: version(name) for name in packages},
    }
