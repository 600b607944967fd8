"""Hold every layer of a Core ML package against the simulation, on the simulation's own input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch.fx import GraphModule, Interpreter

from advisor.passes.fx import placeholders
from advisor.passes.ops import QUANTIZE_STATIC
from advisor.targets.agreement import (
    Agreement,
    Array,
    Tap,
    place_inputs,
    tensors_of,
)
from advisor.targets.coreml.mil import dtype_of
from advisor.targets.coreml.package import Package
from advisor.targets.coreml.readback import own_operators, source_integers
from advisor.targets.lonelayers import Pair, collect_pairs, find_taps, judge_pairs
from advisor.targets.manifest import LayerRecord

HALF_TOLERANCE: Final = 4e-3
"""Largest difference over the largest magnitude of a layer that computes in float16: its input, its
weights and its output are each rounded once, by up to 2**-11 of themselves."""

SMALLEST_NORMAL: Final = 2.0**-14
"""Below it float16 has fixed steps: the smaller a tensor, the more of it rounding costs."""

HALF_FLIP_SHARE: Final = 0.05
"""Share of integers that may differ by one step where floats are float16: rounding x to 11 bits
moves x / scale by up to 1/32 of a step at its largest."""

_Cut = tuple[Any, list[Any], Any]
"""Where to feed a layer, its operators, and its result."""


def check_layers(
    package: Package,
    module: GraphModule,
    layers: Sequence[LayerRecord],
    pieces: Sequence[Sequence[torch.Tensor]],
) -> list[Agreement]:
    """Run every layer and every quantizer of the package alone on the simulation's numbers.

    module: the simulation. pieces: flat inputs at the batch the package was made for.
    """
    taps = find_taps(module, layers)
    cuts = {tap.layer.name: _cut(package, tap) for tap in taps}
    largest: dict[str, float] = {}  # of what each layer reads

    def run(tap: Tap, feed: torch.Tensor) -> Array | None:
        name, cut = tap.layer.name, cuts[tap.layer.name]
        if feed.is_floating_point():
            largest[name] = max(largest.get(name, 0.0), float(feed.abs().max()))
        return None if cut is None else _run(package, cut, feed).numpy()

    pairs = collect_pairs(module, taps, pieces, run)
    return [
        _judge(tap, cuts[tap.layer.name], pairs[tap.layer.name], largest.get(tap.layer.name, 1.0))
        for tap in taps
    ]


def _cut(package: Package, tap: Tap) -> _Cut | None:
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


def _run(package: Package, cut: _Cut, feed: torch.Tensor) -> torch.Tensor:
    start, operations, end = cut
    given = feed.reshape(tuple(start.shape)).to(dtype_of(start))
    (found,) = package.evaluator.compute(operations, {start.name: given}, [end])
    return found.to(torch.float32) if found.is_floating_point() else found


def _judge(tap: Tap, cut: _Cut | None, pairs: Sequence[Pair], largest: float) -> Agreement:
    """largest: magnitude of what the layer reads."""
    if cut is None:
        return judge_pairs(tap, pairs, is_there=False)
    ports = cut[0] if tap.end.target is QUANTIZE_STATIC else cut[2]
    if dtype_of(ports) is not torch.float16:
        return judge_pairs(tap, pairs, is_there=True)
    results = (float(abs(expected).max()) for _, expected in pairs if expected.size)
    scale = min(largest, max(results, default=1.0))
    coarse = max(1.0, SMALLEST_NORMAL / scale) if scale else 1.0
    return judge_pairs(
        tap, pairs, is_there=True, share=HALF_FLIP_SHARE, tolerance=HALF_TOLERANCE * coarse
    )


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
