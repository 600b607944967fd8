"""Files as variants of one model: what every runtime's own kind offers, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from advisor.passes.divergence import divergence, measure_powers
from benchmarks.models import Case, Inputs, in_batches

Array = np.ndarray[Any, Any]

Model = Callable[[Mapping[str, Array]], Sequence[Array]]
"""An open model: from arrays by input name to its outputs."""


class Variant(Protocol):
    """One model file."""

    @property
    def name(self) -> str:
        """What it is called in results."""
        ...

    @property
    def path(self) -> Path:
        """Where it is."""
        ...

    @property
    def size_bytes(self) -> int:
        """Bytes on disk, graph included."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides what it computes and how fast."""
        ...

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What the runtime raises for a model that it cannot open or execute."""
        ...

    def open(self, threads: int) -> Model:
        """Ready to run."""
        ...

    def describe(self) -> dict[str, Any]:
        """What else is known of the file, as JSON."""
        ...


def feed_of(inputs: Inputs) -> dict[str, Array]:
    """Tensors as arrays by input name."""
    return {name: value.numpy() for name, value in inputs.items()}


def calibration_feeds(case: Case) -> list[dict[str, Array]]:
    """The calibration data, cut to the deployment's batch."""
    batches = [each for given in case.calibration for each in in_batches(given, case.batch)]
    return [feed_of(each) for each in batches or [case.example]]


def caller(model: Model, inputs: Inputs) -> Callable[[], object]:
    """A call of the model on fixed inputs, with nothing else in it."""
    feed = feed_of(inputs)
    return lambda: model(feed)


def outputs_of(model: Model, batches: Sequence[Inputs]) -> list[Tensor]:
    """The first output on every batch."""
    return [torch.as_tensor(model(feed_of(each))[0]) for each in batches]


def runner(model: Model, names: Sequence[str]) -> Callable[..., Tensor]:
    """The model as a callable with its own parameters."""

    def run(*values: Tensor, **named: Tensor) -> Tensor:
        inputs = {**dict(zip(names, values, strict=False)), **named}
        return torch.as_tensor(model(feed_of(inputs))[0])

    return run


def divergence_of(case: Case, outputs: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    """Mean distance per sample: nats per prediction, or squared error over the power."""
    powers = measure_powers([each] for each in references)
    per_sample = [
        divergence([ours], [theirs], [case.kind], powers)
        for ours, theirs in zip(outputs, references, strict=True)
    ]
    return float(torch.cat(per_sample).double().mean())
