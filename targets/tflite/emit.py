"""Write the artifact's files: the model, how to run it, and what to check it against."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from advisor.errors import PlanError
from advisor.inputs import Inputs
from advisor.passes.fx import output_nodes, unflatten_inputs
from advisor.passes.graph import Graph, QuantizedGraph
from advisor.passes.shapes import deployment_inputs, infer_shapes
from advisor.targets.describe import describe
from advisor.targets.floatplan import float_plan
from advisor.targets.manifest import CHECK_FOLDER, write_json, write_manifest
from advisor.targets.simulation import save_simulation
from advisor.targets.tflite.options import TfliteOptions
from advisor.targets.tflite.write import write_model, write_with_ports

MODEL_FILE: Final = "model.tflite"
SHAPES_FILE: Final = "shapes.json"
OPTIONS_FILE: Final = "options.json"
FLOAT_FILE: Final = "float.tflite"


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedShapes:
    """batch: rows that the model takes at once. axes: for every output the dimension that has as
    many entries as the batch, None when it has none."""

    batch: int
    axes: tuple[int | None, ...]


def write_artifact(graph: QuantizedGraph, out: Path, options: TfliteOptions) -> None:
    """Write every file of the artifact but acceptance.json into the existing folder ``out``.

    Raises:
        InputError: the model does not accept the deployment's batch or sequence.
        UnsupportedError: a layer, an operator or an output has a form this target cannot write.
    """
    graph, shapes = _at_deployment(graph)
    content, ports = write_with_ports(graph, shapes.batch, graph.sequence, options)
    manifest = replace(describe(graph), ports=tuple(ports))
    (out / MODEL_FILE).write_bytes(content)
    write_manifest(manifest, out)
    write_json(out / SHAPES_FILE, asdict(shapes))
    write_json(out / OPTIONS_FILE, asdict(options))
    save_simulation(graph, tuple(record.name for record in manifest.inputs), out / CHECK_FOLDER)
    plain = write_model(float_plan(graph.float_graph), shapes.batch, graph.sequence)
    (out / CHECK_FOLDER / FLOAT_FILE).write_bytes(plain)


def _at_deployment(graph: QuantizedGraph) -> tuple[QuantizedGraph, FixedShapes]:
    """The graph with example inputs of the deployment's sequence, and its fixed shapes.

    Only the batch stays free: it is run in pieces.
    """
    source = graph.float_graph
    example = Inputs(args=source.args, kwargs=source.kwargs).batch
    rows = example if source.batch is None else source.batch
    args, kwargs = unflatten_inputs(source.module, deployment_inputs(source, rows, graph.sequence))
    dynamic = {
        name: {axis: label for axis, label in dims.items() if label == "batch"}
        for name, dims in source.dynamic.items()
    }
    sized = replace(source, args=args, kwargs=kwargs, dynamic=dynamic)
    batch = rows if graph.batch is None else graph.batch
    shapes = FixedShapes(batch=batch, axes=_output_axes(sized, batch))
    return replace(graph, float_graph=sized), shapes


def _output_axes(graph: Graph, batch: int) -> tuple[int | None, ...]:
    """For every output the dimension that grows with the batch."""
    nodes = output_nodes(graph.module)
    if graph.batch is not None:
        return tuple(None for _ in nodes)
    few = infer_shapes(graph.module, deployment_inputs(graph, batch, None))
    more = infer_shapes(graph.module, deployment_inputs(graph, batch + 1, None))
    axes: list[int | None] = []
    for node in nodes:
        pairs = zip(few[node.name].shape, more[node.name].shape, strict=True)
        axes.append(next((axis for axis, (a, b) in enumerate(pairs) if a != b), None))
    return tuple(axes)


def read_shapes(folder: Path) -> FixedShapes:
    """Read shapes.json.

    Raises:
        PlanError: missing or damaged.
    """
    try:
        kept = _read(folder / SHAPES_FILE)
        axes = tuple(None if axis is None else int(axis) for axis in kept["axes"])
        return FixedShapes(batch=int(kept["batch"]), axes=axes)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder / SHAPES_FILE, error) from error


def read_options(folder: Path) -> TfliteOptions:
    """Read options.json.

    Raises:
        PlanError: missing or damaged.
    """
    try:
        return TfliteOptions(**_read(folder / OPTIONS_FILE))
    except TypeError as error:
        raise _damaged(folder / OPTIONS_FILE, error) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return kept


def _damaged(path: Path, error: Exception) -> PlanError:
    return PlanError(f"{path} cannot be read ({error}); compile the plan again")
