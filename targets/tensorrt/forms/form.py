"""What every form gives: write a layer, and read it back from a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from advisor.targets.manifest import LayerRecord
from advisor.targets.onnxruntime.forms.builder import Builder
from advisor.targets.onnxruntime.forms.form import Call, Found
from advisor.targets.tensorrt.forms.float4 import QUANTIZER
from advisor.targets.tensorrt.forms.weights import VIEWS, find_weight, scheme_of
from advisor.targets.tensorrt.numbers import kind_of

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How one kind of layer looks in ONNX.

    write: adds nodes before the marker and returns what takes the place of its outputs. read: the
    layer whose main node (the one with the layer's name) is given, None when it is none of ours.
    operators: what the main node may be.
    """

    write: Callable[[Builder, Call], tuple[ir.Value, ...]]
    read: Callable[[ir.Node, LayerRecord], Found | None]
    operators: frozenset[str]


def quantized_input(value: ir.Value | None) -> str:
    """ONNX's name of the quantized numbers that a value is made from; "" for floats.

    Casts and views between DequantizeLinear and the operator are looked through, as the compiler
    does; anything else, such as a Relu, hides them from it.
    """
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type == "DequantizeLinear" and _is_float4(producer):
            return "FLOAT4E2M1"
        if producer.op_type == "DequantizeLinear":
            return _kind_of_integers(producer) if _is_quantized(producer) else ""
        if producer.op_type not in VIEWS and producer.op_type != "Cast":
            return ""
        value = producer.inputs[0]
    return ""


def _is_float4(node: ir.Node) -> bool:
    source = node.inputs[0]
    producer = None if source is None else source.producer()
    return producer is not None and producer.op_type == QUANTIZER


def _is_quantized(node: ir.Node) -> bool:
    source = node.inputs[0]
    producer = None if source is None else source.producer()
    return producer is not None and producer.op_type == "QuantizeLinear"


def _kind_of_integers(node: ir.Node) -> str:
    """ONNX's name of what a DequantizeLinear reads; its zero point has the same dtype."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    return kind_of(zero) or kind_of(node.inputs[0])


def read_weighted(node: ir.Node, layer: LayerRecord) -> Found | None:
    """A layer whose operator reads an activation, then its weight."""
    stored = find_weight(node.inputs[1])
    if stored is None:
        return None
    scheme = scheme_of(stored, quantized_input(node.inputs[0]))
    return Found(scheme=scheme, table=stored.table(layer.weight_shape))
