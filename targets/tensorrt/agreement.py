"""Hold every layer of the file against the simulation, on the simulation's own input.

ONNX Runtime runs the file's operators one by one, none fused: full optimization breaks several
graphs with float8 (measured, 1.31.1). It is no judge of speed, and none of what the compiler makes
of the file; that is read from the compiler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch.fx import GraphModule, Node

from advisor.formats import scheme_named
from advisor.passes import ops
from advisor.passes.layers import operands
from advisor.targets.agreement import (
    FLOAT_TOLERANCE,
    Agreement,
    Array,
    Tap,
    compare_floats,
    find_calls,
    run_tapped,
)
from advisor.targets.manifest import LayerRecord
from advisor.targets.onnxruntime.cut import Cut, labelled, run_cut
from advisor.targets.onnxruntime.tidy import NAME_PROPERTY, ROLE_PROPERTY
from advisor.targets.tensorrt.forms import form_of
from advisor.targets.tensorrt.forms.weights import compute_kind

if TYPE_CHECKING:
    import onnx_ir as ir

UNITS: Final = {"FLOAT16": 2.0**-11, "BFLOAT16": 2.0**-8}
"""Largest relative error of rounding once."""

STEPS: Final = {"FLOAT16": 2.0**-24}
"""Distance of the smallest numbers, where a relative error says nothing. That of bfloat16 is below
any difference that matters."""

ROUNDINGS: Final = 4
"""Roundings that a layer in narrow floats may be off by, of its largest value: of its input, its
weight after dequantization, its product and its sum with the bias."""


QUANTIZERS: Final = (
    ops.DEQUANTIZE_STATIC,
    ops.QUANTIZE_STATIC,
    ops.QUANTIZE_DEQUANTIZE_DYNAMIC,
)


def tolerance_of(layer: LayerRecord) -> float:
    """Largest difference over the layer's largest output."""
    unit = UNITS.get(compute_kind(scheme_named(layer.scheme)))
    return FLOAT_TOLERANCE if unit is None else ROUNDINGS * unit


def rounding_noise(layers: Sequence[LayerRecord]) -> dict[str, float]:
    """By node name, the standard deviation of the relative error of what a layer in narrow floats
    reads and of what it writes.

    Of the ``ROUNDINGS``, each uniform within a unit, half come before the product and half behind.
    """
    noise: dict[str, float] = {}
    for layer in layers:
        unit = UNITS.get(compute_kind(scheme_named(layer.scheme)))
        if unit is not None:
            noise[layer.node] = unit * (ROUNDINGS / 2 / 3.0) ** 0.5
    return noise


def check_layers(
    model: ir.Model,
    module: GraphModule,
    layers: Sequence[LayerRecord],
    flat_inputs: Sequence[torch.Tensor],
) -> list[Agreement]:
    """Run every layer of ``model`` alone on the simulation's input of that layer.

    model: in operators that ONNX Runtime has. module: the simulation. layers: those with a form;
    the others are covered end to end. flat_inputs: one per tensor input.
    """
    taps = [
        Tap(record, tuple(_before_quantizers(source) for source in operands(node)), node)
        for record, node, _ in find_calls(module, layers)
        if form_of(record) is not None
    ]
    found: list[Agreement] = []

    def judge(tap: Tap, feeds: Sequence[torch.Tensor], expected: torch.Tensor) -> None:
        arrays = [feed.numpy() for feed in feeds]
        found.append(_judge(model, tap.layer, arrays, expected.numpy()))

    run_tapped(module, taps, flat_inputs, judge)
    order = {layer.name: index for index, layer in enumerate(layers)}
    return sorted(found, key=lambda agreement: order[agreement.layer])


def _before_quantizers(source: Node) -> Node:
    """The floats that a layer's input is made from: quantizers belong to what is checked."""
    while source.target in QUANTIZERS:
        source = source.all_input_nodes[0]
    return source


def _judge(
    model: ir.Model, layer: LayerRecord, feeds: Sequence[Array], expected: Array
) -> Agreement:
    cut = find_cut(model, layer, len(feeds))
    if cut is None:
        return Agreement(
            layer=layer.name, error=float("inf"), problem="the layer's tensors are not in the file"
        )
    entries: Mapping[str, str] = {}
    found, _ = run_cut(model, cut, feeds, expected, entries, as_written=True)
    floor = ROUNDINGS * STEPS.get(compute_kind(scheme_named(layer.scheme)), 0.0) / 2
    return compare_floats(layer.name, found, expected, tolerance_of(layer), floor)


def find_cut(model: ir.Model, layer: LayerRecord, inputs: int) -> Cut | None:
    """From the float tensors that a layer reads to the float tensor that it gives."""
    own = labelled(model, layer.node, "op", "output")
    main = next((node for node in own if node.name == layer.node), None)
    if main is None:
        return None
    first = 1 if layer.op == "embedding" else 0
    starts = [_start(value, layer) for value in main.inputs[first : first + inputs]]
    if any(start is None for start in starts):
        return None
    return Cut(tuple(start for start in starts if start is not None), own[-1].outputs[0])


def _start(value: ir.Value | None, layer: LayerRecord) -> ir.Value | None:
    """What is before the layer's own casts and the quantizers of its input."""
    while value is not None and (producer := value.producer()) is not None:
        role = producer.metadata_props.get(ROLE_PROPERTY)
        is_own = producer.metadata_props.get(NAME_PROPERTY) == layer.node and role == "input"
        if not is_own and role not in ("quantize", "dequantize"):
            break
        value = producer.inputs[0]
    return value
