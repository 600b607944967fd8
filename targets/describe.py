"""A quantized graph in, the manifest of any artifact made from it out."""

from __future__ import annotations

import torch

from advisor.errors import UnsupportedError
from advisor.passes.digest import table_sha256
from advisor.passes.fx import attribute
from advisor.passes.graph import Layer, QuantizedGraph, WeightTable
from advisor.targets.manifest import LayerRecord, Manifest, TensorRecord
from advisor.targets.signature import describe_inputs, describe_outputs


def describe(graph: QuantizedGraph) -> Manifest:
    """What the artifact should contain and how it is called.

    Raises:
        UnsupportedError: an input or output nests in a way that cannot be recorded.
    """
    source = graph.float_graph
    with torch.no_grad():
        outputs = source.module(*source.args, **source.kwargs)
    records, structure = describe_outputs(outputs, source.output_names)
    return Manifest(
        layers=tuple(_record(graph, layer) for layer in source.layers),
        tensors=tuple(
            TensorRecord(
                name=name, scale=params.scale, zero_point=params.zero_point, dtype=params.dtype
            )
            for name, params in sorted(graph.activations.items())
        ),
        inputs=describe_inputs(source),
        outputs=records,
        structure=structure,
    )


def _record(graph: QuantizedGraph, layer: Layer) -> LayerRecord:
    source = graph.float_graph
    return LayerRecord(
        name=layer.name,
        op=layer.op,
        scheme=graph.assignment[layer.name].scheme,
        weight=layer.weight,
        weight_shape=tuple(layer.weight_shape),
        weight_sha256="" if layer.is_product else table_sha256(_table(graph, layer)),
        node=layer.output,
        operand=[other.name for other in source.layers if other.output == layer.output].index(
            layer.name
        ),
    )


def _table(graph: QuantizedGraph, layer: Layer) -> WeightTable:
    table = graph.weights.get(layer.weight)
    if table is not None:
        return table
    scheme = graph.assignment[layer.name].scheme
    if scheme != "fp32":
        raise UnsupportedError(f"{layer.name} is {scheme}, but its integers are not in the graph")
    return WeightTable(values=attribute(graph.float_graph.module, layer.weight))
