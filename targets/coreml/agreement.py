"""Hold every layer of a Core ML package against the simulation, on the simulation's own input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter

from advisor.passes.fx import placeholders
from advisor.passes.graph import name_of
from advisor.passes.layers import LAYER_OPS, input_argument
from advisor.passes.ops import QUANTIZE_STATIC
from advisor.targets.agreement import (
    FLOAT_TOLERANCE,
    Agreement,
    Array,
    Tap,
    before_quantizers,
    compare_floats,
    compare_integers,
    find_calls,
    place_inputs,
    run_tapped,
    tensors_of,
)
from advisor.targets.coreml.convert import RECURRENT
from advisor.targets.coreml.mil import dtype_of
from advisor.targets.coreml.package import Package
from advisor.targets.coreml.readback import own_operators, source_integers
from advisor.targets.manifest import LayerRecord

HALF_TOLERANCE: Final = 4e-3
"""Largest difference over the largest magnitude of a layer that computes in float16: its input, its
weights and its output are each rounded once, by up to 2**-11 of themselves."""

HALF_FLIP_SHARE: Final = 0.05
"""Share of integers that may differ by one step where floats are float16: rounding x to 11 bits
moves x / scale by up to 1/32 of a step at its largest."""


def check_layers(
    package: Package,
    module: GraphModule,
    layers: Sequence[LayerRecord],
    pieces: Sequence[Sequence[torch.Tensor]],
) -> list[Agreement]:
    """Run every layer and every quantizer of the package alone on the simulation's numbers.

    module: the simulation. pieces: flat inputs at the batch the package was made for.
    """
    taps = _find_taps(module, layers)
    cuts = {tap.layer.name: _cut(package, tap) for tap in taps}
    results: dict[str, list[tuple[Array, Array]]] = {tap.layer.name: [] for tap in taps}

    def judge(tap: Tap, feeds: Sequence[torch.Tensor], expected: torch.Tensor) -> None:
        cut = cuts[tap.layer.name]
        if cut is not None:
            found = _run(package, cut, feeds[0])
            if found.numel() == expected.numel():
                pair = found.reshape(expected.shape).numpy(), expected.numpy()
                results[tap.layer.name].append(pair)

    for flat in pieces:
        run_tapped(module, taps, flat, judge)
    return [_judge(tap, cuts[tap.layer.name], results[tap.layer.name]) for tap in taps]


def _find_taps(module: GraphModule, layers: Sequence[LayerRecord]) -> list[Tap]:
    """The layers that the simulation computes with an operator of their own, and its quantizers."""
    taps: list[Tap] = []
    for record, node, static in find_calls(module, layers):
        # A recurrent layer's steps are several operators; a product with a constant is none of
        # MIL's layers, and is judged with the whole.
        if record.weight and record.op not in RECURRENT and node.target in LAYER_OPS:
            taps.append(Tap(record, (before_quantizers(input_argument(node), static),), node))
    for node in module.graph.find_nodes(op="call_function", target=QUANTIZE_STATIC):
        record = LayerRecord(
            name=f"quantizer of {name_of(node)}",
            op="quantize",
            scheme="fp32",
            weight="",
            weight_shape=(),
            weight_sha256="",
            node=name_of(node),
        )
        taps.append(Tap(record, (node.all_input_nodes[0],), node))
    return taps


def _cut(package: Package, tap: Tap) -> tuple[Any, list[Any], Any] | None:
    """Where to feed the layer, its operators, and its result; None when it is not there."""
    if tap.end.target is QUANTIZE_STATIC:
        found = [package.find(name) for name in package.names.tensors.get(tap.layer.node, ())]
        ops = [op for op in found if op is not None]
        return (ops[0].inputs["input"], [ops[0]], ops[0].outputs[0]) if ops else None
    between = own_operators(package, tap.layer)
    if not between:
        return None
    op, last = between[0], between[-1]
    start = op.inputs["indices"] if op.op_type == "gather" else op.inputs["x"]
    maker: Any = start.op
    if op.op_type == "conv_transpose" and maker is not None and maker.op_type == "pad":
        between = [maker, *between]  # an output padding that cutting cannot make
        start = maker.inputs["x"]
    if tap.sources[0].target is QUANTIZE_STATIC:
        integers = source_integers(op)
        if integers is None:
            return None
        while start is not integers:
            between.insert(0, start.op)
            start = start.op.inputs["input" if start.op.op_type == "dequantize" else "x"]
    return start, between, last.outputs[0]


def _run(package: Package, cut: tuple[Any, list[Any], Any], feed: torch.Tensor) -> torch.Tensor:
    start, operations, end = cut
    given = feed.reshape(tuple(start.shape)).to(dtype_of(start))
    (found,) = package.evaluator.compute(operations, {start.name: given}, [end])
    return found.to(torch.float32) if found.is_floating_point() else found


def _judge(tap: Tap, cut: Any, results: Sequence[tuple[Array, Array]]) -> Agreement:
    name = tap.layer.name
    if not results:
        problem = "the layer is not in the package" if cut is None else "has another shape"
        return Agreement(layer=name, error=float("inf"), problem=problem)
    found = np.stack([pair[0] for pair in results])
    expected = np.stack([pair[1] for pair in results])
    if tap.end.target is QUANTIZE_STATIC:
        is_half = dtype_of(cut[0]) is torch.float16
        return compare_integers(
            name, found, expected, **({"share": HALF_FLIP_SHARE} if is_half else {})
        )
    is_half = dtype_of(cut[2]) is torch.float16
    return compare_floats(name, found, expected, HALF_TOLERANCE if is_half else FLOAT_TOLERANCE)


def run_halved(module: GraphModule, flat_inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Outputs of the simulation when every float in it is rounded to float16.

    How far that moves them is a property of the model: what float16 arithmetic costs it.
    """

    class Halved(Interpreter):
        def run_node(self, n: Any) -> Any:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
                return value.to(torch.float16).to(torch.float32)
            return value

    with torch.no_grad():
        placed = place_inputs(placeholders(module), flat_inputs)
        outputs = Halved(module).run(*placed, enable_io_processing=False)
    return tensors_of(outputs)
