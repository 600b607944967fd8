"""The model before quantization as an ONNX file, to compare the artifact with."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from advisor.passes.graph import QuantizedGraph
from advisor.targets.floatplan import float_plan
from advisor.targets.onnxruntime.export import export_onnx
from advisor.targets.onnxruntime.onnxfile import write_model

FLOAT_FILE: Final = "float.onnx"


def write_float_model(graph: QuantizedGraph, folder: Path) -> None:
    """Write the float model that ``graph`` was made from into the existing ``folder``."""
    write_model(export_onnx(float_plan(graph.float_graph)), folder / FLOAT_FILE)
