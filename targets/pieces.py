"""Run a model of a fixed batch on any number of rows: piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from advisor.errors import InputError
from advisor.targets.fixedshapes import FixedShapes
from advisor.targets.manifest import InputRecord

Array = np.ndarray[Any, Any]


def run_pieces(
    run: Callable[[Sequence[Array]], list[Array]],
    records: Sequence[InputRecord],
    shapes: FixedShapes,
    arrays: Mapping[str, Array],
) -> list[Array]:
    """Outputs for all rows of the inputs, in order.

    The last piece is filled up with copies of the last row, whose outputs are dropped; no row's
    result depends on its neighbours.

    Raises:
        InputError: inputs disagree in their number of rows, or the number is not the model's and
            an output has no dimension for it.
    """
    axes = [record.shape.index("batch") if "batch" in record.shape else None for record in records]
    given = [arrays[record.name] for record in records]
    rows = {array.shape[axis] for array, axis in zip(given, axes, strict=True) if axis is not None}
    if len(rows) > 1:
        raise InputError(
            f"the inputs have {' and '.join(map(str, sorted(rows)))} rows; give all the same batch"
        )
    total = rows.pop() if rows else shapes.batch
    if total == shapes.batch:
        return run(given)
    if None in shapes.axes:
        raise InputError(
            f"{total} rows were given, but the model is compiled for {shapes.batch} and returns "
            "a tensor without a batch dimension, so it cannot be run in pieces; give "
            f"{shapes.batch} rows, or plan with advise(..., batch={total})"
        )
    parts = [
        run(
            [
                _piece(array, axis, start, shapes.batch)
                for array, axis in zip(given, axes, strict=True)
            ]
        )
        for start in range(0, total, shapes.batch)
    ]
    joined = [
        np.concatenate(outputs, axis=axis)
        for outputs, axis in zip(zip(*parts, strict=True), _known(shapes), strict=True)
    ]
    return [
        np.take(output, np.arange(total), axis=axis)
        for output, axis in zip(joined, _known(shapes), strict=True)
    ]


def _known(shapes: FixedShapes) -> list[int]:
    return [axis for axis in shapes.axes if axis is not None]


def _piece(array: Array, axis: int | None, start: int, size: int) -> Array:
    if axis is None:
        return array
    rows = np.minimum(np.arange(start, start + size), array.shape[axis] - 1)
    taken: Array = np.take(array, rows, axis=axis)
    return taken
