"""Operators that the converter writes and a file can do without; no value changes.

What it moves to the end it moves back before a mean over the image, which might as well run where
the channels are; a TRANSPOSE is also what an Edge TPU stops at.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from advisor.targets.tflite.flatbuffer import FlatModel


def tidy(model: FlatModel, values: Collection[int]) -> None:
    """Take out every TRANSPOSE that is only there for a MEAN.

    values: tensors that have to stay.
    """
    makers = model.producers()
    for operator in model.operators:
        if model.code(operator) == "MEAN" and int(operator.inputs[0]) not in values:
            _read_before(model, operator, makers.get(int(operator.inputs[0])))
    read = {int(i) for op in model.operators for i in op.inputs} | set(values)
    read |= set(map(int, model.graph.outputs))
    model.graph.operators = [
        operator
        for operator in model.operators
        if model.code(operator) != "TRANSPOSE" or int(operator.outputs[0]) in read
    ]


def _read_before(model: FlatModel, mean: Any, maker: Any) -> None:
    """Let a MEAN read what a TRANSPOSE before it reads, over the axes it then means."""
    if maker is None or model.code(maker) != "TRANSPOSE":
        return
    order, axes = _constant(model, maker.inputs[1]), _constant(model, mean.inputs[1])
    if order is None or axes is None:
        return
    rank = len(order)
    taken = {order[axis % rank] for axis in axes}
    kept = [axis for axis in order if axis not in taken]
    in_place = all(order[axis] == axis for axis in range(rank) if order[axis] not in taken)
    if kept != sorted(kept) or (mean.builtinOptions.keepDims and not in_place):
        return
    data = np.array(sorted(taken), np.int32)
    axes_tensor = model.add_tensor(
        f"{model.name(int(mean.outputs[0]))}/axes", data.shape, "INT32", data=data.tobytes()
    )
    mean.inputs = [int(maker.inputs[0]), axes_tensor]


def _constant(model: FlatModel, tensor: int) -> list[int] | None:
    data = model.data(int(tensor))
    if data is None or model.dtype(int(tensor)) != "INT32":
        return None
    return [int(value) for value in np.frombuffer(data, np.int32)]
