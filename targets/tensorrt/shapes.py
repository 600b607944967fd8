"""profile.json: the range of every dynamic dimension that an engine is built for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from advisor.errors import PlanError
from advisor.passes.graph import QuantizedGraph
from advisor.targets.manifest import InputRecord, Manifest, write_json
from advisor.targets.simulation import MOST_ROWS, flat_tensors

PROFILE_FILE: Final = "profile.json"
KEYS: Final = ("min", "opt", "max")

Ranges = Mapping[str, Mapping[str, Sequence[int]]]
"""By input name "min", "opt" and "max" shapes, of inputs with a dynamic dimension."""


def ranges_of(graph: QuantizedGraph, manifest: Manifest) -> dict[str, dict[str, list[int]]]:
    """From one up to what the model was shown, best at the deployment's batch and sequence.

    A batch may have as many rows as artifacts are checked with.
    """
    examples = _example_shapes(graph, manifest)
    deployed = {"batch": graph.batch, "sequence": graph.sequence}
    ranges: dict[str, dict[str, list[int]]] = {}
    for record in manifest.inputs:
        if not any(isinstance(size, str) for size in record.shape):
            continue
        shapes: dict[str, list[int]] = {key: [] for key in KEYS}
        for size, shown in zip(record.shape, examples[record.name], strict=True):
            best = shown if isinstance(size, int) else (deployed.get(size) or shown)
            most = max(best, shown, MOST_ROWS if size == "batch" else 1)
            sizes = (size,) * 3 if isinstance(size, int) else (1, best, most)
            for key, wanted in zip(KEYS, sizes, strict=True):
                shapes[key].append(wanted)
        ranges[record.name] = shapes
    return ranges


def _example_shapes(graph: QuantizedGraph, manifest: Manifest) -> dict[str, tuple[int, ...]]:
    source = graph.float_graph
    tensors = flat_tensors((source.args, source.kwargs))
    return {
        record.name: tuple(tensor.shape)
        for record, tensor in zip(manifest.inputs, tensors, strict=True)
    }


def write_ranges(ranges: Ranges, folder: Path) -> None:
    """Write profile.json into ``folder``."""
    write_json(folder / PROFILE_FILE, ranges)


def read_ranges(folder: Path, inputs: Sequence[InputRecord]) -> dict[str, dict[str, list[int]]]:
    """Read profile.json.

    Raises:
        PlanError: missing, damaged, or a dynamic dimension has no range that fits it.
    """
    path = folder / PROFILE_FILE
    try:
        read: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlanError(f"{path} cannot be read ({error}); compile the plan again") from error
    table = cast("dict[str, Any]", read) if isinstance(read, dict) else {}
    for record in inputs:
        if any(isinstance(size, str) for size in record.shape):
            _check(path, record, table.get(record.name))
    unknown = [name for name in table if name not in {record.name for record in inputs}]
    if unknown:
        names = ", ".join(record.name for record in inputs)
        raise PlanError(f"{path}: the model has no input {unknown[0]!r}; it has {names}")
    return table


def _check(path: Path, record: InputRecord, found: object) -> None:
    takes = f"input {record.name} {list(record.shape)}"
    if not isinstance(found, dict):
        dynamic = ", ".join(size for size in record.shape if isinstance(size, str))
        raise PlanError(
            f"{path} has no range for {takes}, whose {dynamic} may change: add its min, opt and "
            'max shapes, such as {"min": [1, 3], "opt": [8, 3], "max": [64, 3]}'
        )
    given = cast("dict[str, Any]", found)
    shapes = [given.get(key) for key in KEYS]
    fits = all(
        isinstance(shape, list) and len(cast("Sequence[int]", shape)) == len(record.shape)
        for shape in shapes
    )
    rows = cast("list[list[int]]", shapes)
    if not fits or not all(
        low <= best <= high and low >= 1 and (isinstance(size, str) or low == high == size)
        for size, low, best, high in zip(record.shape, *rows, strict=True)
    ):
        raise PlanError(
            f"{path}: {takes} needs min, opt and max shapes of its rank that grow from one to the "
            f"next and keep its fixed sizes, not {given}"
        )
