"""Keep ONNX Runtime from rounding the weights of float layers between integers.

From 1.21 on it rounds the float weight of a Conv, ConvTranspose or Gemm to int8, with one scale for
all channels, where the layer reads dequantized integers and a quantizer alone reads its result, be
it behind a Relu or Clip (WeightBiasQuantization: https://github.com/microsoft/onnxruntime/pull/22969
and 25673). A plan that leaves a sensitive layer in float among integers would run it in coarser
ones than any of its own, and no session setting is needed for that. The pattern has no other
activation function, so a LeakyRelu stands in its way: of slope 0 it is the Relu that was there, of
slope 1 nothing at all, and either is computed inside the layer's kernel.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from advisor.targets.onnxruntime.forms.builder import Builder
from advisor.targets.onnxruntime.rewrite import VIEWS, has_integer_weight
from advisor.targets.onnxruntime.sites import MOVED_ACROSS
from advisor.targets.onnxruntime.tidy import NAME_PROPERTY

if TYPE_CHECKING:
    import onnx_ir as ir

ROUNDED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""A MatMul with a bias added becomes a Gemm where its sizes are known."""

FENCED: Final = "/fence/out"
"""What follows the layer's name in that of a fence's result."""

PASSED: Final = VIEWS | MOVED_ACROSS
"""ONNX Runtime moves quantizers across these, towards the layer."""


def fence_floats(model: ir.Model, counter: Counter[str]) -> None:
    """Put a fence behind every float layer whose weight would be rounded."""
    for node in list(model.graph):
        if node.op_type in ROUNDED and _reads_integers(node) and not has_integer_weight(node):
            last = _with_bias(node)
            activation = _activation_before_quantizer(last)
            if activation is not None:
                _fence(model, node, last, activation, counter)


def _reads_integers(node: ir.Node) -> bool:
    """Whether a DequantizeLinear is, or will be, right before the layer."""
    value = node.inputs[0]
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type == "DequantizeLinear":
            return True
        if producer.op_type not in PASSED:
            return False
        value = producer.inputs[0]
    return False


def _with_bias(node: ir.Node) -> ir.Node:
    """The Add of a bias behind a MatMul, or the node itself."""
    readers = list(node.outputs[0].consumers())
    if node.op_type != "MatMul" or len(readers) != 1 or readers[0].op_type != "Add":
        return node
    (add,) = readers
    name = node.metadata_props.get(NAME_PROPERTY)
    return add if name is not None and add.metadata_props.get(NAME_PROPERTY) == name else node


def _activation_before_quantizer(node: ir.Node) -> ir.Node | None:
    """The Relu or Clip between the layer and the quantizer that alone reads it, or the layer; None
    when something else does."""
    found = node
    while True:
        readers = list(node.outputs[0].consumers())
        if len(readers) != 1:
            return None
        (node,) = readers
        if node.op_type == "QuantizeLinear":
            return found
        if node.op_type in ("Relu", "Clip"):
            found = node
        elif node.op_type not in PASSED:
            return None


def _fence(
    model: ir.Model, layer: ir.Node, last: ir.Node, activation: ir.Node, counter: Counter[str]
) -> None:
    """last: the layer's own last node."""
    import onnx_ir as ir

    if activation.op_type == "Relu":
        activation.op_type = "LeakyRelu"
        activation.attributes.add(ir.AttrFloat32("alpha", 0.0))
        if not activation.outputs[0].is_graph_output():  # the fused operator goes by this name
            activation.outputs[0].name = f"{layer.name}{FENCED}"
        return
    value = last.outputs[0]
    readers = list(value.uses())
    name = layer.metadata_props.get(NAME_PROPERTY, str(layer.name))
    build = Builder(model=model, before=readers[0][0], name=name, used=counter)
    apart = build.node("LeakyRelu", [value], role="fence", alpha=1.0)
    apart.shape, apart.type = value.shape, value.type
    for reader, index in readers:
        reader.replace_input_with(index, apart)
