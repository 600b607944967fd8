"""Keep quantized weights from being expanded, where the compiler would rearrange products.

All of this was measured with TensorRT-RTX 1.7.1.116:

- Layers that read one float16 tensor may become one product, with their weights side by side. Where
  one weight is float16 and another int8 (not int4), the integers are expanded for that.
- A small layer of which only parts are read, such as queries, keys and values from one layer of 64
  inputs, becomes products with parts of its weight, which is expanded for that (not with 128).
- Behind a product of two activations with nothing moved between, as with a single head, a layer is
  joined with it, and its int8 weight is expanded.
- What turns a small layer's result (to mix tokens, say) is drawn into the product, whose weight is
  then the left operand; an int8 one is expanded for that.
- A weight that two products read is expanded once for both. Nothing prevents that; such layers are
  not planned with a weight that alone is quantized.

A Clip between the largest float32 numbers changes no finite number, and the compiler computes it
together with what is before or after it. But it does not look through it: before the cast of an
int8 layer it makes two tensors of one, and behind a layer it keeps the parts from being drawn
into the product.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from advisor.targets.onnxruntime.cut import labelled
from advisor.targets.onnxruntime.forms.builder import Builder
from advisor.targets.onnxruntime.tidy import NAME_PROPERTY
from advisor.targets.tensorrt.forms.form import quantized_input
from advisor.targets.tensorrt.forms.weights import CASTS, VIEWS, find_weight

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST: Final = float(np.finfo(np.float32).max)
PRODUCTS: Final = frozenset({"Gemm", "MatMul"})
PARTS: Final = frozenset({"Gather", "Slice", "Split"})
"""Operators that read a part of their first input."""


def add_fences(model: ir.Model, used: Counter[str]) -> None:
    """Put a Clip wherever the compiler would expand a weight otherwise."""
    for _, cast in [*find_joined(model), *find_chained(model)]:
        source = cast.inputs[0]
        assert source is not None  # a cast has its operand
        kept = _clip(model, cast, source, used, role="input")
        cast.replace_input_with(0, kept)
    for product in [*find_split(model), *find_turned(model)]:
        last = labelled(model, product.metadata_props[NAME_PROPERTY], "op", "output")[-1]
        result = last.outputs[0]
        readers = list(result.uses())
        first = min(readers, key=lambda use: _place(model, use[0]))
        kept = _clip(model, first[0], result, used, role="output", name_of=product)
        for reader, index in readers:
            reader.replace_input_with(index, kept)


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


def find_chained(model: ir.Model) -> list[tuple[ir.Node, ir.Node]]:
    """Products of an int8 weight alone, each with the cast of its operand, right behind a product
    of two activations."""
    found: list[tuple[ir.Node, ir.Node]] = []
    for node in _with_int8_alone(model):
        cast = _behind_views(node.inputs[0])
        if cast is not None and cast.op_type == "Cast":
            before = _behind_views(cast.inputs[0])
            if before is not None and _multiplies_activations(before):
                found.append((node, cast))
    return found


def _with_int8_alone(model: ir.Model) -> Iterator[ir.Node]:
    """Products of floats and a weight that is kept in int8."""
    for node in model.graph:
        if node.op_type in PRODUCTS and not quantized_input(node.inputs[0]):
            weight = find_weight(node.inputs[1])
            if weight is not None and weight.kind == "INT8":
                yield node


def _behind_views(value: ir.Value | None) -> ir.Node | None:
    """What a value comes from through nodes that move no number."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in VIEWS and not _moves(node):
        source = node.inputs[0]
        node = None if source is None else source.producer()
    return node


def _moves(node: ir.Node) -> bool:
    """Whether a node is a Transpose of more than axes of size 1, such as that of a single head."""
    order, source = node.attributes.get("perm"), node.inputs[0]
    if node.op_type != "Transpose" or order is None or source is None or source.shape is None:
        return node.op_type == "Transpose"
    shape = source.shape
    kept = [axis for axis in order.as_ints() if shape[axis] != 1]
    return kept != sorted(kept)


def _multiplies_activations(node: ir.Node) -> bool:
    """Whether a node is a product of activations, or the cast of its result."""
    if node.op_type == "Cast":
        inner = _behind_views(node.inputs[0])
        return inner is not None and _multiplies_activations(inner)
    return node.op_type == "MatMul" and find_weight(node.inputs[1]) is None


def find_split(model: ir.Model) -> list[ir.Node]:
    """Products of a quantized weight of which every reader reads a part only."""
    found: list[ir.Node] = []
    for node in model.graph:
        if node.op_type in PRODUCTS and _all_read(node.outputs[0], _reads_part, _passes):
            weight = find_weight(node.inputs[1])
            if weight is not None and weight.scale is not None:
                found.append(node)
    return found


def find_turned(model: ir.Model) -> list[ir.Node]:
    """Products of an int8 weight alone whose result every reader turns, so that its last axis is
    no longer the last."""
    return [
        node
        for node in _with_int8_alone(model)
        if _all_read(node.outputs[0], _turns, _passes_in_order)
    ]


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


def _reads_part(node: ir.Node) -> bool:
    """Whether a node reads a part only."""
    return node.op_type in PARTS


def _all_read(
    value: ir.Value, ends: Callable[[ir.Node], bool], passes: Callable[[ir.Node], bool]
) -> bool:
    """Whether every path of readers from a value ends at a node that ``ends`` accepts, with only
    nodes that ``passes`` accepts before it."""
    readers = [user for user, _ in value.uses()]
    if not readers or value.is_graph_output():
        return False
    return all(
        ends(reader) or (passes(reader) and _all_read(reader.outputs[0], ends, passes))
        for reader in readers
    )


def _turns(node: ir.Node) -> bool:
    """Whether the node is a Transpose that puts another axis last."""
    order = node.attributes.get("perm")
    if node.op_type != "Transpose" or order is None:
        return False
    axes = order.as_ints()
    return axes[-1] != len(axes) - 1


def _passes(node: ir.Node) -> bool:
    """Whether a part of what the node gives is the same of a part of what it reads."""
    if node.op_type == "Add":
        return any(value is not None and value.is_initializer() for value in node.inputs)
    return node.op_type in VIEWS or node.op_type == "Cast"


def _passes_in_order(node: ir.Node) -> bool:
    """The same, of nodes that leave the axes as they are."""
    return node.op_type not in VIEWS and _passes(node)


def _place(model: ir.Model, node: ir.Node) -> int:
    return next(place for place, other in enumerate(model.graph) if other is node)


def _clip(
    model: ir.Model,
    before: ir.Node,
    source: ir.Value,
    used: Counter[str],
    *,
    role: str,
    name_of: ir.Node | None = None,
) -> ir.Value:
    """A Clip of ``source``, which is float32, that stands before a node."""
    name = (name_of or before).metadata_props[NAME_PROPERTY]
    build = Builder(model=model, before=before, name=name, used=used)
    low = build.constant("advisor.least", np.array(-LARGEST, np.float32))
    high = build.constant("advisor.most", np.array(LARGEST, np.float32))
    kept = build.node("Clip", [source, low, high], role=role)
    kept.shape, kept.type = source.shape, source.type
    return kept
