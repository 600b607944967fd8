"""The model before quantization as an ONNX file, to compare the artifact with."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from advisor.passes.graph import LayerAssignment, QuantizedGraph
from advisor.targets.onnxruntime.export import export_onnx
from advisor.targets.onnxruntime.onnxfile import write_model

FLOAT_FILE: Final = "float.onnx"


def write_float_model(graph: QuantizedGraph, folder: Path) -> None:
    """Write the float model that ``graph`` was made from into the existing ``folder``.

    It goes the same way as the artifact, so that only the precision differs.
    """
    source = graph.float_graph
    plain = QuantizedGraph(
        module=source.module,
        float_graph=source,
        assignment={
            layer.name: LayerAssignment(scheme="fp32", algorithm="rtn") for layer in source.layers
        },
        weights={},
        activations={},
    )
    write_model(export_onnx(plain), folder / FLOAT_FILE)
