"""Find and replace values of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import onnx_ir as ir


VIEWS: Final = frozenset({"Expand", "Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that rearrange or repeat elements, of whatever type."""


def before_views(value: ir.Value) -> tuple[ir.Value, list[ir.Node]]:
    """The value that ``value`` is a rearrangement of, and the operators that lead there."""
    views: list[ir.Node] = []
    while (node := value.producer()) is not None and node.op_type in VIEWS:
        source = node.inputs[0]
        if source is None:
            break
        views.insert(0, node)
        value = source
    return value, views


def before_pad(value: ir.Value) -> tuple[ir.Value, list[ir.Node]]:
    """As ``before_views`` for a Pad: ONNX Runtime has one of integers, but writes none itself."""
    node = value.producer()
    if node is None or node.op_type != "Pad" or node.inputs[0] is None:
        return value, []
    filled = node.inputs[2] if len(node.inputs) > 2 else None
    is_known = filled is None or filled.const_value is not None
    return (node.inputs[0], [node]) if is_known else (value, [])


def has_integer_weight(node: ir.Node) -> bool:
    """Whether the second operand is a DequantizeLinear's, as written for static layers alone."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    producer = None if weight is None else weight.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def replace_value(model: ir.Model, old: ir.Value, new: ir.Value) -> None:
    """Let everything that reads ``old`` read ``new``; a model's output keeps its name."""
    for user, index in list(old.uses()):
        user.replace_input_with(index, new)
    for index, output in enumerate(model.graph.outputs):
        if output is not old:
            continue
        if new.is_graph_output() or new.is_graph_input() or new.is_initializer():
            new = _copy(model, new)
        name, old.name = old.name, f"{old.name}/marker"
        new.name = name
        model.graph.outputs[index] = new


def _copy(model: ir.Model, value: ir.Value) -> ir.Value:
    import onnx_ir as ir

    node = ir.node("Identity", [value], name=f"{value.name}/copy")
    node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
    model.graph.append(node)
    return node.outputs[0]
