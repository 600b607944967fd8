"""One row of the comparison per file: what it is, its bytes, and how far its outputs are."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from importlib import import_module
from typing import Any, Final

from torch import Tensor

from advisor.decide import package_versions
from advisor.doctor import read_cpu
from benchmarks.onnxruntime.measure import (
    Variant,
    caller,
    divergence_of,
    open_variant,
    outputs_of,
    runner,
)
from benchmarks.onnxruntime.models import Case
from benchmarks.onnxruntime.plans import Answer

FLOAT: Final = "float32"
"""The reference of every ratio and divergence: the model as PyTorch exports it."""

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
        """The row, or its failure when ONNX Runtime cannot run the file."""
        if self.variant is None:
            return self
        try:
            caller(open_variant(self.variant, 1), case.example)()
        except RUN_ERRORS as error:
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
            **self.said,
        }


state: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")  # it has no types
RUN_ERRORS: Final = (
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NotImplemented,
    state.RuntimeException,
)
"""What ONNX Runtime raises for a model it cannot open or execute."""


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
        digest = digest_of(row.variant)
        if digest not in known:
            session = open_variant(row.variant, 1)
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


def digest_of(variant: Variant) -> str:
    """SHA-256 over the model file, the weights beside it, and how it is opened."""
    opened = [sorted(variant.entries.items()), sorted(variant.dimensions.items())]
    digest = sha256(repr(opened).encode())
    for file in sorted(variant.path.parent.glob(f"{variant.path.name}*")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def describe_machine() -> dict[str, Any]:
    """Versions and processor: what the numbers depend on besides the model."""
    cpu = read_cpu()
    return {
        "cpu": cpu.model,
        "cores": cpu.cores,
        "features": list(cpu.features or ()),
        "python": platform.python_version(),
        "versions": package_versions(),
    }
