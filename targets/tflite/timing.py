"""Time whole models on LiteRT with XNNPACK, and say which share of that each layer takes.

LiteRT's Python package has no profiler, and XNNPACK runs many operators as one. So every layer and
every conversion is also timed as a model of its own, once per form that it has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from advisor.inputs import Inputs
from advisor.passes.fx import flatten_inputs, placeholders
from advisor.passes.graph import Graph, QuantizedGraph, name_of
from advisor.passes.layers import find_calls
from advisor.targets.base import REST, Part, Timing
from advisor.targets.statistics import low_quantile
from advisor.targets.tflite.flatbuffer import FlatModel
from advisor.targets.tflite.interpreter import LiteModel
from advisor.targets.tflite.readback import layer_operators
from advisor.targets.tflite.values import TWIN, Values, read_values
from advisor.targets.tflite.write import write_model
from advisor.targets.turns import Opened, feed_of, time_in_turns

PIECE_RUNS: Final = (5, 200)
"""Fewest and most runs of a layer alone."""

PIECE_S: Final = 4e-3
"""Time to spend on a layer alone, where the fewest runs do not take longer."""

LEAST_REST: Final = 0.02
"""Share of the whole that is left for all other operators where the pieces add up to more: alone
they also take what it takes to call the runtime."""

Form = tuple[Any, ...]
Known = dict[Form, float]
"""Seconds of what was timed alone, by operators and the shapes and types of their tensors."""


def time_models(
    builders: Sequence[Callable[[], QuantizedGraph]],
    inputs: Sequence[Any],
    *,
    threads: int | None,
    limit_s: float,
    with_parts: bool,
    say: Callable[[int, int], None],
) -> tuple[Timing, ...]:
    """Time of every model; arguments as ``advisor.targets.base.Stopwatch``.

    Raises:
        UnsupportedError: an operator or a layer has a form that TFLite does not have.
    """
    known: Known | None = {} if with_parts else None
    return time_in_turns(
        builders,
        partial(_open, inputs=inputs, threads=threads, known=known),
        threads=threads,
        limit_s=limit_s,
        say=say,
    )


def _open(
    graph: QuantizedGraph, inputs: Sequence[Any], threads: int | None, known: Known | None
) -> Opened:
    content = write_model(graph, *sizes_of(graph.float_graph, inputs))
    model = LiteModel(content, threads)
    model.run(list(feed_of(graph.float_graph, inputs).values()))
    run = model.again  # what is copied in and out is no cost of a layer, and the same for all plans
    shares: dict[Part, float] = {}
    if known is not None:
        shares = _time_pieces(FlatModel(content), graph, threads, known)
        whole = _seconds(run)
        shares[REST] = max(whole - sum(shares.values()), LEAST_REST * whole)
    return Opened(
        run=run,
        file_bytes=len(content),
        shares=shares,
        partitions=model.partitions().delegated,
    )


def sizes_of(graph: Graph, inputs: Sequence[Any]) -> tuple[int, int | None]:
    """Batch and sequence of flat inputs; the sequence is None where it is the example's own."""
    found: dict[str, int] = {}
    own: dict[str, int] = {}
    example = flatten_inputs(graph.module, graph.args, graph.kwargs)
    for node, value, given in zip(placeholders(graph.module), inputs, example, strict=True):
        for axis, label in graph.dynamic.get(node.name, {}).items():
            found.setdefault(label, value.shape[axis])
            own.setdefault(label, given.shape[axis])
    batch = found.get("batch", Inputs(args=graph.args, kwargs=graph.kwargs).batch)
    sequence = found.get("sequence")
    return (
        batch if graph.batch is None else graph.batch,
        None if sequence == own.get("sequence") else sequence,
    )


def _time_pieces(
    model: FlatModel, graph: QuantizedGraph, threads: int | None, known: Known
) -> dict[Part, float]:
    """Seconds of every layer and conversion alone."""
    found: dict[Part, float] = {}
    for part, operators in _pieces(model, read_values(model), graph.float_graph):
        form = tuple(_form(model, operator) for operator in operators)
        if form not in known:
            known[form] = _time_alone(model, operators, threads)
        found[part] = known[form]
    return found


def _pieces(model: FlatModel, values: Values, graph: Graph) -> Iterator[tuple[Part, list[Any]]]:
    for layer, call in find_calls(graph.module, graph.layers).items():
        operators = layer_operators(model, values, name_of(call))
        if operators:
            yield ("layer", layer), operators
    stable = {tensor: name for name, (tensor, _) in values.places.items()}
    for operator in model.operators:
        source = model.name(int(operator.inputs[0]))
        if model.code(operator) == "QUANTIZE" and source in stable:
            yield ("quantize", stable[source]), [operator]
        elif model.code(operator) == "DEQUANTIZE" and source.removesuffix(TWIN) in stable:
            yield ("dequantize", stable[source.removesuffix(TWIN)]), [operator]


def _form(model: FlatModel, operator: Any) -> Form:
    tensors = [int(i) for i in (*operator.inputs, *operator.outputs) if i >= 0]
    given = operator.builtinOptions
    details: dict[str, Any] = {} if given is None else given.__dict__
    return (
        model.code(operator),
        *((model.shape(i), model.dtype(i), model.is_constant(i)) for i in tensors),
        *sorted((key, str(value)) for key, value in details.items()),
    )


def _time_alone(model: FlatModel, operators: Sequence[Any], threads: int | None) -> float:
    made = {int(out) for operator in operators for out in operator.outputs}
    read = dict.fromkeys(
        int(i)
        for operator in operators
        for i in operator.inputs
        if i >= 0 and int(i) not in made and not model.is_constant(int(i))
    )
    content = model.extract(operators, list(read), [int(operators[-1].outputs[0])])
    alone = LiteModel(content, threads)
    alone.run([np.ones(shape, np.int8) for shape in alone.shapes()])
    return _seconds(alone.again)


def _seconds(run: Callable[[], object]) -> float:
    """Low quantile of a few runs after one that is not counted."""
    run()
    runs: list[float] = []
    fewest, most = PIECE_RUNS
    while len(runs) < fewest or (sum(runs) < PIECE_S and len(runs) < most):
        begin = time.perf_counter()
        run()
        runs.append(time.perf_counter() - begin)
    return low_quantile(runs)
