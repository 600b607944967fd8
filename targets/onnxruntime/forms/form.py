"""What every form gives: write a layer, read it back, and the operators that may execute it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from advisor.errors import UnsupportedError
from advisor.formats import Scheme, scheme_named
from advisor.passes.graph import Layer, WeightTable
from advisor.targets.manifest import LayerRecord

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch.fx import Node

    from advisor.targets.onnxruntime.forms.builder import Builder

FLOAT_KINDS: Final = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One layer to be written.

    node: its call in the float graph, for strides and the like. inputs: its tensor arguments in
    ONNX, the weight (still float) included. table: the stored weight, None under fp32. bias: None
    without one. is_shared: other layers read the same weight. layers, tables: of a recurrent
    operator, which has two weights, both layers in order and all tables by weight name.
    """

    layer: Layer
    scheme: Scheme
    node: Node
    inputs: tuple[ir.Value, ...]
    table: WeightTable | None
    bias: ir.Value | None
    is_shared: bool
    layers: tuple[Layer, ...] = ()
    tables: Mapping[str, WeightTable] = field(default_factory=dict[str, WeightTable])

    @property
    def stored(self) -> WeightTable:
        """The table of a scheme that must have one.

        Raises:
            UnsupportedError: there is none, or it has zero points, which no form here writes.
        """
        if self.table is None or self.table.zero_point is not None:
            raise UnsupportedError(
                f"{self.layer.name} is {self.scheme.name}, but the graph has no symmetric integers "
                "for it; give it a scheme without zero points"
            )
        return self.table


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A layer as stored in a file: the scheme that its operators spell, and its numbers.

    table: None for a layer without a weight.
    """

    scheme: str
    table: WeightTable | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How one kind of layer looks in ONNX.

    write: adds nodes before the marker and returns what takes the place of its outputs. read: the
    layer whose main node (the one with the layer's name) is given, None when it is none of ours.
    kernels: operators of ONNX Runtime that compute it as planned; empty when any does. start: the
    values that the layer reads, empty when they are not found. ends_in_integers: under a static
    scheme the layer and the quantizer behind it are one operator.
    """

    write: Callable[[Builder, Call], tuple[ir.Value, ...]]
    read: Callable[[ir.Node, LayerRecord], Found | None]
    kernels: Callable[[LayerRecord], frozenset[str]]
    start: Callable[[ir.Node, LayerRecord], tuple[ir.Value, ...]]
    ends_in_integers: bool = False


def first_input(node: ir.Node, layer: LayerRecord) -> tuple[ir.Value, ...]:
    """What most operators read: the first input; of a static layer the integers before it."""
    value = node.inputs[0]
    producer = None if value is None else value.producer()
    is_static = scheme_named(layer.scheme).is_static
    if is_static and producer is not None and producer.op_type == "DequantizeLinear":
        value = producer.inputs[0]
    return () if value is None else (value,)


def integer(node: ir.Node, name: str) -> int:
    """An integer attribute, 0 when it is not there."""
    attribute: Any = node.attributes.get(name)
    return 0 if attribute is None else int(attribute.as_int())
