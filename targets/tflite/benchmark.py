"""The float model and the plan, timed in turns on this machine."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from advisor.doctor import read_cpu
from advisor.errors import InputError, PlanError
from advisor.targets.benchmark import Benchmark, Progress, paired_ratio, summarise, time_in_turns
from advisor.targets.fixedshapes import FixedShapes
from advisor.targets.manifest import CHECK_FOLDER, Manifest
from advisor.targets.simulation import load_examples
from advisor.targets.tflite.emit import FLOAT_FILE, MODEL_FILE
from advisor.targets.tflite.interpreter import LiteModel, runtime_version
from advisor.targets.tflite.ports import to_file

ROUNDS: Final = 40
SECONDS: Final = 20.0
"""Spent on timing unless asked otherwise."""


def run_benchmark(
    folder: Path,
    manifest: Manifest,
    shapes: FixedShapes,
    *,
    batch: int | None,
    sequence: int | None,
    threads: int | None,
    rounds: int,
    seconds: float,
    progress: Progress | None,
) -> Benchmark:
    """Time both models in turns in this process; memory is not measured.

    Raises:
        InputError: another batch or sequence than the compiled one.
        PlanError: the float model or the examples are missing.
        UsageError: too few rounds, or no time.
        MissingDependencyError: ai-edge-litert is not installed.
    """
    files = (folder / CHECK_FOLDER / FLOAT_FILE, folder / MODEL_FILE)
    if not files[0].exists():
        raise PlanError(
            f"{files[0]} is missing, so there is no float model to compare with; "
            "compile the plan again"
        )
    models = [LiteModel(file.read_bytes(), threads) for file in files]
    inputs = _examples(folder, manifest, models[0].shapes())
    lengths = {array.shape[1] for array in inputs.values() if array.ndim > 1}
    if batch not in (None, shapes.batch) or not (sequence is None or sequence in lengths):
        raise InputError(
            f"batch {batch} and sequence {sequence} were asked, but the model is compiled for "
            f"batch {shapes.batch} and inputs of shapes "
            f"{', '.join(str(array.shape) for array in inputs.values())}; plan for other shapes "
            "with advise(..., batch=..., sequence=...)"
        )
    arrays = list(inputs.values())
    forms = (arrays, to_file(manifest.ports, arrays))
    times = time_in_turns(
        [partial(model.run, form) for model, form in zip(models, forms, strict=True)],
        rounds=rounds,
        seconds=seconds,
        progress=progress,
    )
    variants = [
        summarise(
            visits,
            batch=shapes.batch,
            memory=None,
            file_bytes=file.stat().st_size,
            partitions=model.partitions().delegated,
        )
        for file, model, visits in zip(files, models, times, strict=True)
    ]
    return Benchmark(
        float_model=variants[0],
        plan=variants[1],
        latency_ratio=paired_ratio(times[1], times[0]),
        rounds=rounds,
        batch=shapes.batch,
        shapes={name: tuple(array.shape) for name, array in inputs.items()},
        threads=threads,
        executed_by=runtime_version(),
        cpu=read_cpu().model,
    )


def _examples(
    folder: Path, manifest: Manifest, shapes: list[tuple[int, ...]]
) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    """The example inputs kept with the artifact, repeated or cut to the compiled shapes."""
    kept = load_examples(folder / CHECK_FOLDER)
    return {
        record.name: np.resize(kept[record.name], shape)
        for record, shape in zip(manifest.inputs, shapes, strict=True)
    }
