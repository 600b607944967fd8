"""Write the artifact's files: the model, how to run it, and what to check it against."""

from __future__ import annotations

from pathlib import Path

from advisor.passes.graph import QuantizedGraph
from advisor.targets.describe import describe
from advisor.targets.manifest import CHECK_FOLDER, write_manifest
from advisor.targets.onnxruntime.export import export_onnx
from advisor.targets.onnxruntime.floatmodel import write_float_model
from advisor.targets.onnxruntime.manifest import MODEL_FILE, write_session_entries
from advisor.targets.onnxruntime.onnxfile import write_model
from advisor.targets.simulation import save_simulation


def write_artifact(graph: QuantizedGraph, out: Path) -> None:
    """Write every file of the artifact but acceptance.json into the existing folder ``out``.

    Raises:
        UnsupportedError: a layer or an output has a form this target cannot write.
        VerificationError: a dimension that should be dynamic became fixed.
    """
    model = export_onnx(graph)
    manifest = describe(graph)
    write_model(model, out / MODEL_FILE)
    write_manifest(manifest, out)
    write_session_entries(out)
    save_simulation(graph, tuple(record.name for record in manifest.inputs), out / CHECK_FOLDER)
    write_float_model(graph, out / CHECK_FOLDER)
