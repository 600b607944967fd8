"""The float model and the plan side by side: how fast, how many at a time, how much memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from advisor.doctor import read_cpu
from advisor.errors import InputError, PlanError
from advisor.planfile import read_plan
from advisor.targets.benchmark import (
    Benchmark,
    Progress,
    paired_ratio,
    summarise,
    time_in_turns,
)
from advisor.targets.manifest import CHECK_FOLDER, Manifest
from advisor.targets.onnxruntime.floatmodel import FLOAT_FILE
from advisor.targets.onnxruntime.manifest import MODEL_FILE, read_session_entries
from advisor.targets.onnxruntime.memory import measure_memory
from advisor.targets.onnxruntime.onnxfile import load_model, sizes_of
from advisor.targets.onnxruntime.session import open_session, runtime_version
from advisor.targets.signature import takes
from advisor.targets.simulation import load_examples

Arrays = dict[str, np.ndarray[Any, Any]]

PLAN_FILE: Final = "plan.json"

ROUNDS: Final = 40
RUNS: Final = 3
"""Runs before the peak of memory is read."""
SECONDS: Final = 10.0


def run_benchmark(
    folder: Path,
    manifest: Manifest,
    *,
    batch: int | None = None,
    sequence: int | None = None,
    threads: int | None = None,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    progress: Progress | None = None,
) -> Benchmark:
    """Time both models in turns in this process, then measure the memory of each in its own.

    For timing the sizes that may change are fixed at the inputs', for memory they stay dynamic, as
    ``artifact.run`` leaves them.

    batch, sequence, threads: None takes the plan's, where the folder holds a plan; without one,
    batch 1 (or the only one the model takes), the examples' sequence, and ONNX Runtime's own choice
    of threads.

    Raises:
        InputError: the model is fixed at another batch or sequence.
        PlanError: the float model or the examples are missing or damaged.
        UsageError: too few rounds, or no time.
        MissingDependencyError: onnxruntime is not installed.
    """
    plan = read_plan(folder) if (folder / PLAN_FILE).exists() else None
    if plan is not None:
        batch = plan.batch if batch is None else batch
        sequence = plan.sequence if sequence is None else sequence
        threads = plan.threads if threads is None else threads
    if batch is None:
        batch = _fixed_batch(manifest) or 1
    inputs = sized_inputs(manifest, load_examples(folder / CHECK_FOLDER), batch, sequence)
    entries = read_session_entries(folder)
    models = (folder / CHECK_FOLDER / FLOAT_FILE, folder / MODEL_FILE)
    names = [record.name for record in manifest.outputs]
    if not models[0].exists():
        raise PlanError(
            f"{models[0]} is missing, so there is no float model to compare with; "
            "compile the plan again"
        )
    sessions = [
        open_session(
            model, entries, threads=threads, dimensions=sizes_of(load_model(model), inputs)
        )
        for model in models
    ]
    times = time_in_turns(
        [partial(session.run, names, inputs) for session in sessions],
        rounds=rounds,
        seconds=seconds,
        progress=progress,
    )
    variants = [
        summarise(
            visits,
            batch=batch,
            memory=measure_memory(model, entries, [inputs] * RUNS, threads=threads),
            file_bytes=model_bytes(model),
        )
        for model, visits in zip(models, times, strict=True)
    ]
    return Benchmark(
        float_model=variants[0],
        plan=variants[1],
        latency_ratio=paired_ratio(times[1], times[0]),
        rounds=rounds,
        batch=batch,
        shapes={name: tuple(array.shape) for name, array in inputs.items()},
        threads=threads,
        executed_by=runtime_version(),
        cpu=read_cpu().model,
    )


def model_bytes(model: Path) -> int:
    """Bytes of an ONNX file and of the weights beside it."""
    return sum(file.stat().st_size for file in model.parent.glob(f"{model.name}*"))


def sized_inputs(
    manifest: Manifest,
    examples: Mapping[str, np.ndarray[Any, Any]],
    batch: int,
    sequence: int | None = None,
) -> Arrays:
    """The examples, repeated or cut along the dimensions that may change.

    Raises:
        InputError: the batch or the sequence is fixed at another size, or is not positive.
    """
    wanted = {"batch": batch} if sequence is None else {"batch": batch, "sequence": sequence}
    for axis, (label, size) in enumerate(wanted.items()):
        _check_size(manifest, label, axis, size)
    arrays: Arrays = {}
    for record in manifest.inputs:
        array = examples[record.name]
        for axis, length in enumerate(record.shape):
            if length in wanted:
                kept = np.arange(wanted[str(length)]) % array.shape[axis]
                array = np.take(array, kept, axis=axis)
        arrays[record.name] = np.ascontiguousarray(array)
    return arrays


def _check_size(manifest: Manifest, label: str, axis: int, size: int) -> None:
    if size < 1:
        raise InputError(f"{label} {size} was asked; ask 1 or more")
    if any(label in record.shape for record in manifest.inputs):
        return
    fixed = [record.shape[axis] for record in manifest.inputs if len(record.shape) > axis]
    if size not in fixed:
        raise InputError(
            f"{label} {size} was asked, but the model takes only "
            f"{', '.join(map(str, dict.fromkeys(fixed))) or 'inputs without one'}; "
            f"{takes(manifest)}; leave {label} out"
        )


def _fixed_batch(manifest: Manifest) -> int | None:
    """The only batch the model takes, or None when it may change."""
    firsts = [record.shape[0] for record in manifest.inputs if record.shape]
    return int(firsts[0]) if firsts and "batch" not in firsts else None
