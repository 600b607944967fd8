"""Hold every layer of a TFLite file against the simulation, on the simulation's own input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import torch
from torch.fx import GraphModule, Node

from advisor.passes import ops
from advisor.passes.layers import operands
from advisor.targets.agreement import (
    Agreement,
    Array,
    Tap,
    before_quantizers,
    compare_floats,
    compare_integers,
    find_calls,
    run_tapped,
)
from advisor.targets.manifest import LayerRecord
from advisor.targets.tflite.flatbuffer import FlatModel
from advisor.targets.tflite.interpreter import LiteModel
from advisor.targets.tflite.markers import end_of, fused_operators, is_table
from advisor.targets.tflite.readback import layer_operators
from advisor.targets.tflite.values import Values, read_values

TO_CHANNELS_LAST = (0, 2, 3, 1)


@dataclass(slots=True)
class _Cut:
    """One layer as a model of its own. free: which inputs it takes; the others are constants in
    the file, such as positions. moved: which inputs have their channels last, and whether the
    output has."""

    model: LiteModel
    free: tuple[bool, ...]
    moved: tuple[bool, ...]
    output_moved: bool


def check_layers(
    model: FlatModel,
    module: GraphModule,
    layers: Sequence[LayerRecord],
    pieces: Sequence[Sequence[torch.Tensor]],
) -> tuple[list[Agreement], dict[str, str]]:
    """Run every layer of ``model`` alone on the simulation's input of that layer.

    module: the simulation. pieces: flat inputs at the batch the model was made for. Returns one
    agreement per layer with an operator, and what executed each.
    """
    values = read_values(model)
    taps = find_taps(module, layers)
    cuts = {tap.layer.name: _cut(model, values, tap) for tap in taps}
    results: dict[str, list[tuple[Array, Array]]] = {tap.layer.name: [] for tap in taps}

    def judge(tap: Tap, feeds: Sequence[torch.Tensor], expected: torch.Tensor) -> None:
        cut = cuts[tap.layer.name]
        if cut is not None:
            arrays = [feed.numpy() for feed in feeds]
            results[tap.layer.name].append((_run(cut, arrays), expected.numpy()))

    for flat in pieces:
        run_tapped(module, taps, flat, judge)
    kernels = {name: cut.model.kernel() for name, cut in cuts.items() if cut is not None}
    return [_judge(tap, results[tap.layer.name]) for tap in taps], kernels


def find_taps(module: GraphModule, layers: Sequence[LayerRecord]) -> list[Tap]:
    """The layers that the simulation computes with an operator of their own."""
    taps: list[Tap] = []
    for record, node, is_static in find_calls(module, layers):
        if not record.weight:
            continue
        sources = tuple(
            before_quantizers(source, is_static)
            for source in operands(node)
            if source.op != "get_attr" or is_table(node)  # a weight that has no quantized form
        )
        taps.append(Tap(record, sources, _end(node, is_static)))
    return taps


def _end(node: Node, is_static: bool) -> Node:
    """The layer's fused activation function, or what quantizes that."""
    end = end_of(node, fused_operators())
    users = list(end.users)
    if is_static and len(users) == 1 and users[0].target is ops.QUANTIZE_STATIC:
        return users[0]
    return end


def _cut(model: FlatModel, values: Values, tap: Tap) -> _Cut | None:
    """The operators of one layer between the tensors it is judged on; None when not in the file."""
    is_integer = tap.end.target is ops.QUANTIZE_STATIC
    names = values.starts.get(tap.layer.node, [])
    if len(names) != len(tap.sources):
        return None
    starts = [
        values.tensor(name, integers=source.target is ops.QUANTIZE_STATIC)
        for name, source in zip(names, tap.sources, strict=True)
    ]
    end_name = values.ends.get(tap.layer.node, "")
    end = values.tensor(end_name, integers=is_integer)
    operators = layer_operators(model, values, tap.layer.node)
    inputs = [start for start in starts if start is not None]
    if end is None or len(inputs) != len(starts) or not operators:
        return None
    made = {int(tensor) for operator in operators for tensor in operator.outputs}
    read = {int(t) for operator in operators for t in operator.inputs if t >= 0}
    if any(not model.is_constant(tensor) for tensor in read - made - set(inputs)):
        return None  # it reads something else than the plan's input
    free = tuple(not model.is_constant(start) for start in inputs)
    content = model.extract(operators, list(compress(inputs, free)), [end])
    return _Cut(
        model=LiteModel(content, threads=1),
        free=free,
        moved=tuple(values.channels_last(name) for name in names),
        output_moved=values.channels_last(end_name),
    )


def _run(cut: _Cut, feeds: Sequence[Array]) -> Array:
    arrays = [
        feed.transpose(TO_CHANNELS_LAST) if moved else feed
        for feed, moved, is_free in zip(feeds, cut.moved, cut.free, strict=True)
        if is_free
    ]
    (found,) = cut.model.run(arrays)
    return found.transpose(np.argsort(TO_CHANNELS_LAST)) if cut.output_moved else found


def _judge(tap: Tap, results: Sequence[tuple[Array, Array]]) -> Agreement:
    name = tap.layer.name
    if not results:
        return Agreement(
            layer=name, error=float("inf"), problem="the layer's tensors are not in the file"
        )
    found = np.stack([pair[0] for pair in results])
    expected = np.stack([pair[1] for pair in results])
    if found.shape != expected.shape:
        return Agreement(
            layer=name,
            error=float("inf"),
            problem=f"has shape {found.shape[1:]} instead of {expected.shape[1:]}",
        )
    if tap.end.target is ops.QUANTIZE_STATIC:
        return compare_integers(name, found, expected)
    return compare_floats(name, found, expected)
