"""Our plans as ONNX files."""

from __future__ import annotations

from pathlib import Path

import torch

from advisor.passes.graph import QuantizedGraph
from advisor.targets.onnxruntime.export import export_onnx
from advisor.targets.onnxruntime.manifest import SESSION_ENTRIES
from advisor.targets.onnxruntime.onnxfile import sizes_of, write_model
from benchmarks.measure import feed_of
from benchmarks.models import Inputs
from benchmarks.onnxruntime.measure import OnnxVariant


def write_onnx(
    name: str, graph: QuantizedGraph, path: Path, example: Inputs | None = None
) -> OnnxVariant:
    """Emit a quantized graph as the product does, without what it keeps beside it to verify.

    example: its sizes are fixed when the file is opened; None: they stay dynamic.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        model = export_onnx(graph)
    write_model(model, path)
    sizes = {} if example is None else sizes_of(model, feed_of(example))
    return OnnxVariant(name=name, path=path, entries=SESSION_ENTRIES, dimensions=sizes)
