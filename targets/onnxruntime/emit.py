"""Write the artifact's files: the model, how to run it, and what to check it against."""

from __future__ import annotations

from pathlib import Path

import torch

from advisor.errors import UnsupportedError
from advisor.passes.digest import table_sha256
from advisor.passes.fx import attribute
from advisor.passes.graph import Layer, QuantizedGraph, WeightTable
from advisor.targets.onnxruntime.export import export_onnx
from advisor.targets.onnxruntime.floatmodel import write_float_model
from advisor.targets.onnxruntime.manifest import (
    CHECK_FOLDER,
    MODEL_FILE,
    LayerRecord,
    Manifest,
    TensorRecord,
    write_manifest,
)
from advisor.targets.onnxruntime.onnxfile import write_model
from advisor.targets.onnxruntime.signature import describe_inputs, describe_outputs
from advisor.targets.onnxruntime.simulation import save_simulation


def write_artifact(graph: QuantizedGraph, out: Path) -> None:
    """Write every file of the artifact but acceptance.json into the existing folder ``out``.

    Raises:
        UnsupportedError: a layer or an output has a form this target cannot write.
        VerificationError: a dimension that should be dynamic became fixed.
    """
    source = graph.float_graph
    model = export_onnx(graph)
    with torch.no_grad():
        outputs = source.module(*source.args, **source.kwargs)
    records, structure = describe_outputs(outputs, source.output_names)
    inputs = describe_inputs(source)
    manifest = Manifest(
        layers=tuple(_record(graph, layer) for layer in source.layers),
        tensors=tuple(
            TensorRecord(
                name=name, scale=params.scale, zero_point=params.zero_point, dtype=params.dtype
            )
            for name, params in sorted(graph.activations.items())
        ),
        inputs=inputs,
        outputs=records,
        structure=structure,
    )
    write_model(model, out / MODEL_FILE)
    write_manifest(manifest, out)
    save_simulation(graph, tuple(record.name for record in inputs), out / CHECK_FOLDER)
    write_float_model(graph, out / CHECK_FOLDER)


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
