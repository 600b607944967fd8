"""Files as variants: their bytes, their sessions, their distance from the float model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from advisor.passes.divergence import divergence, measure_powers
from benchmarks.onnxruntime.models import Case, Inputs

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One model file. entries: the session configuration it must be opened with.

    dimensions: sizes to fix when it is opened, by the name of a dynamic dimension. Without it a
    file with a dynamic batch computes its shapes at every run, which the peers' files need not.
    """

    name: str
    path: Path
    entries: Mapping[str, str] = field(default_factory=dict[str, str])
    dimensions: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def size_bytes(self) -> int:
        """Bytes on disk of the model and the weights beside it, graph included."""
        return sum(file.stat().st_size for file in self.path.parent.glob(f"{self.path.name}*"))


def open_variant(variant: Variant, threads: int) -> onnxruntime.InferenceSession:
    """A session on the CPU with one inter-op and ``threads`` intra-op threads."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    for key, value in variant.entries.items():
        options.add_session_config_entry(key, value)
    for name, size in variant.dimensions.items():
        options.add_free_dimension_override_by_name(name, size)
    return onnxruntime.InferenceSession(
        str(variant.path), options, providers=["CPUExecutionProvider"]
    )


def feed_of(inputs: Inputs) -> dict[str, Array]:
    """Tensors as arrays by input name."""
    return {name: value.numpy() for name, value in inputs.items()}


def caller(session: onnxruntime.InferenceSession, inputs: Inputs) -> Callable[[], object]:
    """A call of the session on fixed inputs, with nothing else in it."""
    feed = feed_of(inputs)
    return lambda: session.run(None, feed)


def outputs_of(session: onnxruntime.InferenceSession, batches: Sequence[Inputs]) -> list[Tensor]:
    """The first output on every batch."""
    return [torch.as_tensor(session.run(None, feed_of(each))[0]) for each in batches]


def runner(session: onnxruntime.InferenceSession, names: Sequence[str]) -> Callable[..., Tensor]:
    """The session as a callable with the model's own parameters."""

    def run(*values: Tensor, **named: Tensor) -> Tensor:
        inputs = {**dict(zip(names, values, strict=False)), **named}
        return torch.as_tensor(session.run(None, feed_of(inputs))[0])

    return run


def divergence_of(case: Case, outputs: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    """Mean distance per sample: nats per prediction, or squared error over the power."""
    powers = measure_powers([each] for each in references)
    per_sample = [
        divergence([ours], [theirs], [case.kind], powers)
        for ours, theirs in zip(outputs, references, strict=True)
    ]
    return float(torch.cat(per_sample).double().mean())
