"""Flatbuffers of one operator, made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from advisor.targets.tflite.flatbuffer import UTILITIES, FlatModel, schema
from advisor.targets.tflite.packages import load

Shape = tuple[int, ...]


def one_operator(
    code: str,
    inputs: Sequence[Shape | np.ndarray[Any, Any]],
    output: Shape,
    dtype: str = "INT8",
    options: Mapping[str, Any] | None = None,
    kind: str = "",
) -> FlatModel:
    """A model of one operator. inputs: shapes of activations, or constants of scale 0.5."""
    generated = schema()
    tree, graph, empty = generated.ModelT(), generated.SubGraphT(), generated.BufferT()
    tree.version, tree.buffers, tree.operatorCodes, tree.subgraphs = 3, [empty], [], [graph]
    graph.tensors, graph.operators, graph.inputs, graph.outputs = [], [], [], []
    model = FlatModel(bytes(load(UTILITIES).convert_object_to_bytearray(tree)))
    model.graph.operators, model.graph.tensors, model.tree.operatorCodes = [], [], []
    parameters = generated.QuantizationParametersT()
    parameters.scale, parameters.zeroPoint = np.array([0.5], np.float32), np.array([3], np.int64)
    read: list[int] = []
    for index, each in enumerate(inputs):
        if isinstance(each, np.ndarray):
            made = model.add_tensor(
                f"c{index}", each.shape, each.dtype.name.upper(), data=each.tobytes()
            )
            model.tensor(made).quantization = parameters
        else:
            made = model.add_tensor(f"x{index}", each, dtype)
        read.append(made)
    written = model.add_tensor("y", output, dtype)
    operator = model.make_operator(code, read, [written])
    if options is not None:
        operator.builtinOptions = getattr(generated, f"{kind}T")()
        for name, value in options.items():
            setattr(operator.builtinOptions, name, value)
    model.operators.append(operator)
    return model
