"""Layers that share something, for which the compiler expands an int8 or int4 weight to float16.

Layers that read one float16 tensor may become one product, with their weights side by side. Where
one weight is float16 and another int8 (not int4), the integers are expanded for that. A Clip in
front of the cast makes the tensors two for the compiler, which computes it together with what
comes before. It changes no number: its bounds are float32 numbers that are infinite in float16.

A weight that two products read is expanded once for both, and nothing prevents that; such layers
are not planned with a weight that alone is quantized.

Both were measured with TensorRT-RTX 1.7.1.116.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from advisor.targets.onnxruntime.forms.builder import Builder
from advisor.targets.onnxruntime.tidy import NAME_PROPERTY
from advisor.targets.tensorrt.forms.form import quantized_input
from advisor.targets.tensorrt.forms.weights import CASTS, VIEWS, find_weight

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST: Final = float(np.finfo(np.float32).max)
PRODUCTS: Final = frozenset({"Gemm", "MatMul"})


def keep_apart(model: ir.Model, used: Counter[str]) -> None:
    """Put a Clip before the cast of every layer whose int8 weight would be joined with others."""
    for _, cast in find_joined(model):
        name = cast.metadata_props[NAME_PROPERTY]
        build = Builder(model=model, before=cast, name=name, used=used)
        source = cast.inputs[0]
        assert source is not None  # a cast has its operand
        low = build.constant("advisor.least", np.array(-LARGEST, np.float32))
        high = build.constant("advisor.most", np.array(LARGEST, np.float32))
        kept = build.node("Clip", [source, low, high], role="input")
        kept.shape, kept.type = source.shape, source.type
        cast.replace_input_with(0, kept)


def find_joined(model: ir.Model) -> list[tuple[ir.Node, ir.Node]]:
    """Products of an int8 weight alone, each with the cast of its operand, where a product of a
    float16 weight reads the same tensor in float16."""
    values = [output for node in model.graph for output in node.outputs]
    found: list[tuple[ir.Node, ir.Node]] = []
    for source in (*model.graph.inputs, *values):
        kinds: dict[str, list[tuple[ir.Node, ir.Node]]] = {}
        for cast, _ in source.uses():
            if cast.op_type == "Cast" and cast.attributes["to"].as_int() == CASTS["FLOAT16"]:
                for product in _products(cast.outputs[0]):
                    weight = find_weight(product.inputs[1])
                    kind = "" if weight is None else weight.kind
                    kinds.setdefault(kind, []).append((product, cast))
        if "FLOAT16" in kinds:
            found += kinds.get("INT8", [])
    return found


def find_tied(model: ir.Model) -> list[ir.Node]:
    """Products of floats whose quantized weight another product reads too."""
    readers: dict[int, list[ir.Node]] = {}
    for node in model.graph:
        if node.op_type in PRODUCTS and not quantized_input(node.inputs[0]):
            weight = find_weight(node.inputs[1])
            if weight is not None and weight.scale is not None:
                readers.setdefault(id(weight.source), []).append(node)
    return [node for nodes in readers.values() if len(nodes) > 1 for node in nodes]


def _products(value: ir.Value) -> Iterator[ir.Node]:
    """The products whose first operand is the value, through views of it."""
    for user, index in value.uses():
        if user.op_type in PRODUCTS and index == 0:
            yield user
        elif user.op_type in VIEWS:
            yield from _products(user.outputs[0])
