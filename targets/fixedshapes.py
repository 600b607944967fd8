"""Files of fixed shapes: made for the deployment's batch and sequence, run in pieces.

Runtimes whose files cannot have a free dimension share this; see also ``pieces``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import torch

from advisor.inputs import Inputs
from advisor.passes.fx import output_nodes, unflatten_inputs
from advisor.passes.graph import Graph, QuantizedGraph
from advisor.passes.shapes import deployment_inputs, infer_shapes
from advisor.targets.manifest import InputRecord, damaged, read_json, write_json

SHAPES_FILE: Final = "shapes.json"

MOST_PIECES: Final = 4
"""Batches that every layer is run alone on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedShapes:
    """batch: rows that the model takes at once. axes: for every output the dimension that has as
    many entries as the batch, None when it has none."""

    batch: int
    axes: tuple[int | None, ...]


def at_deployment(graph: QuantizedGraph) -> tuple[QuantizedGraph, FixedShapes]:
    """The graph with example inputs of the deployment's sequence, and its fixed shapes.

    Only the batch stays free: it is run in pieces.

    Raises:
        InputError: the model does not accept the deployment's batch or sequence.
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


def write_shapes(shapes: FixedShapes, folder: Path) -> None:
    """Write shapes.json into ``folder``."""
    write_json(folder / SHAPES_FILE, asdict(shapes))


def read_shapes(folder: Path) -> FixedShapes:
    """Read shapes.json.

    Raises:
        PlanError: missing or damaged.
    """
    path = folder / SHAPES_FILE
    kept = read_json(path)
    try:
        axes = tuple(None if axis is None else int(axis) for axis in kept["axes"])
        return FixedShapes(batch=int(kept["batch"]), axes=axes)
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from error


def cut_pieces(
    records: tuple[InputRecord, ...], shapes: FixedShapes, flat: list[torch.Tensor]
) -> list[list[torch.Tensor]]:
    """Up to ``MOST_PIECES`` batches of ``flat`` inputs, each as large as the files want."""
    axes = [record.shape.index("batch") if "batch" in record.shape else None for record in records]
    size = shapes.batch
    rows = [t.shape[axis] for t, axis in zip(flat, axes, strict=True) if axis is not None]
    count = max(min([r // size for r in rows] + [MOST_PIECES]), 1)
    return [
        [
            tensor if axis is None else _rows(tensor, axis, index * size, size)
            for tensor, axis in zip(flat, axes, strict=True)
        ]
        for index in range(count)
    ]


def _rows(tensor: torch.Tensor, axis: int, start: int, size: int) -> torch.Tensor:
    """``size`` rows from ``start``; from the beginning again where there are not enough."""
    wanted = torch.arange(start, start + size) % tensor.shape[axis]
    return tensor.index_select(axis, wanted)
