"""Hold every layer of an ONNX file against the simulation, on the simulation's own input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch.fx import GraphModule

from advisor.formats import scheme_named
from advisor.passes import ops
from advisor.passes.graph import name_of
from advisor.passes.layers import operands
from advisor.targets.agreement import (
    FLOAT_TOLERANCE,
    Agreement,
    Array,
    Tap,
    before_quantizers,
    compare_floats,
    compare_integers,
    end_of,
    find_calls,
    run_tapped,
)
from advisor.targets.manifest import LayerRecord
from advisor.targets.onnxruntime.cut import find_cut, run_cut
from advisor.targets.onnxruntime.forms import form_of
from advisor.targets.onnxruntime.forms.form import integer
from advisor.targets.onnxruntime.forms.weights import constant_array
from advisor.targets.onnxruntime.kernels import acceptable_kernels

if TYPE_CHECKING:
    import onnx_ir as ir

STATE_TOLERANCE: Final = 1e-2
"""The same for an LSTM that rounds its hidden state at every step: where one rounding falls the
other way, all later steps differ by about what a 255th of the state's range makes of them."""

OFFSET_TOLERANCE: Final = 3e-6
"""Largest difference over what MatMulNBits adds up and takes off again (``_offset``): up to 1e-6
was measured with 16384 inputs of one sign, in float64 otherwise."""


def check_layers(
    model: ir.Model,
    module: GraphModule,
    layers: Sequence[LayerRecord],
    flat_inputs: Sequence[torch.Tensor],
    entries: Mapping[str, str],
) -> list[Agreement]:
    """Run every layer of ``model`` alone on the simulation's input of that layer.

    module: the simulation. layers: those with an operator this target knows; frozen ones have
    none and are covered end to end. flat_inputs: one per tensor input.
    """
    taps = find_taps(module, layers)
    found: list[Agreement] = []

    def judge(tap: Tap, feeds: Sequence[torch.Tensor], expected: torch.Tensor) -> None:
        arrays = [feed.numpy() for feed in feeds]
        found.append(_judge(model, tap, arrays, expected.numpy(), entries))

    run_tapped(module, taps, flat_inputs, judge)
    order = {layer.name: index for index, layer in enumerate(layers)}
    return sorted(found, key=lambda agreement: order[agreement.layer])


def find_taps(module: GraphModule, layers: Sequence[LayerRecord]) -> list[Tap]:
    """The layers that the simulation's graph computes with an operator this target knows."""
    taps: list[Tap] = []
    for record, node, is_static in find_calls(module, layers):
        form = form_of(record)
        if form is None:
            continue
        sources = tuple(before_quantizers(source, is_static) for source in operands(node))
        ends_later = is_static and form.ends_in_integers
        taps.append(Tap(record, sources, end_of(node) if ends_later else node))
    return taps


def rounds_states(layer: LayerRecord) -> bool:
    """Whether the layer is an LSTM that quantizes its hidden state at every step."""
    return layer.op == "lstm" and scheme_named(layer.scheme).is_dynamic


def _judge(
    model: ir.Model, tap: Tap, feeds: Sequence[Array], expected: Array, entries: Mapping[str, str]
) -> Agreement:
    layer = tap.layer
    quantized_as = name_of(tap.end) if tap.end.target is ops.QUANTIZE_STATIC else ""
    cut = find_cut(model, layer, quantized_as)
    if cut is None:
        return Agreement(
            layer=layer.name, error=float("inf"), problem="the layer's tensors are not in the file"
        )
    for start, feed in zip(cut.starts, feeds, strict=True):
        if start.dtype is not None and start.dtype.numpy() != feed.dtype:
            return Agreement(
                layer=layer.name,
                error=float("inf"),
                problem=f"reads {start.dtype.name.lower()} instead of {feed.dtype}",
            )
    found, ran = run_cut(model, cut, feeds, expected, entries)
    kernels = acceptable_kernels(layer)
    if kernels and not kernels & ran:
        problem = f"runs as {', '.join(sorted(ran))}, not as {' or '.join(sorted(kernels))}"
        return Agreement(layer=layer.name, error=float("inf"), problem=problem)
    if quantized_as:
        return compare_integers(layer.name, found, expected)
    largest = float(np.abs(expected).max(initial=0.0)) or 1.0
    tolerance = STATE_TOLERANCE if rounds_states(layer) else FLOAT_TOLERANCE
    tolerance = max(tolerance, OFFSET_TOLERANCE * _offset(model, layer, feeds[0]) / largest)
    return compare_floats(layer.name, found, expected, tolerance)


def _offset(model: ir.Model, layer: LayerRecord, x: Array) -> float:
    """The largest number that MatMulNBits takes off a sum, where it multiplies integers; else 0.

    x: the layer's input. Its quantized blocks are multiplied by unsigned weights, whose zero point
    counts as often as the integers of x add up to.
    """
    node = next((node for node in model.graph if node.name == layer.node), None)
    if node is None or node.op_type != "MatMulNBits" or not integer(node, "accuracy_level"):
        return 0.0
    scale = constant_array(node.inputs[2])
    if scale is None:
        return 0.0
    sums = np.abs(x).reshape(-1, scale.shape[1], integer(node, "block_size")).sum(-1)
    largest = float(np.max(sums @ scale.T, initial=0.0))
    return largest * (1 << (integer(node, "bits") - 1))
