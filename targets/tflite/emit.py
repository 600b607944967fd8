"""Write the artifact's files: the model, how to run it, and what to check it against."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from advisor.passes.graph import QuantizedGraph
from advisor.targets.describe import describe
from advisor.targets.fixedshapes import at_deployment, write_shapes
from advisor.targets.floatplan import float_plan
from advisor.targets.manifest import CHECK_FOLDER, damaged, read_json, write_json, write_manifest
from advisor.targets.simulation import save_simulation
from advisor.targets.tflite.options import TfliteOptions
from advisor.targets.tflite.write import write_model, write_with_ports

MODEL_FILE: Final = "model.tflite"
OPTIONS_FILE: Final = "options.json"
FLOAT_FILE: Final = "float.tflite"


def write_artifact(graph: QuantizedGraph, out: Path, options: TfliteOptions) -> None:
    """Write every file of the artifact but acceptance.json into the existing folder ``out``.

    Raises:
        InputError: the model does not accept the deployment's batch or sequence.
        UnsupportedError: a layer, an operator or an output has a form this target cannot write.
    """
    graph, shapes = at_deployment(graph)
    content, ports = write_with_ports(graph, shapes.batch, graph.sequence, options)
    manifest = replace(describe(graph), ports=tuple(ports))
    (out / MODEL_FILE).write_bytes(content)
    write_manifest(manifest, out)
    write_shapes(shapes, out)
    write_json(out / OPTIONS_FILE, asdict(options))
    save_simulation(graph, tuple(record.name for record in manifest.inputs), out / CHECK_FOLDER)
    plain = write_model(float_plan(graph.float_graph), shapes.batch, graph.sequence)
    (out / CHECK_FOLDER / FLOAT_FILE).write_bytes(plain)


def read_options(folder: Path) -> TfliteOptions:
    """Read options.json.

    Raises:
        PlanError: missing or damaged.
    """
    try:
        return TfliteOptions(**read_json(folder / OPTIONS_FILE))
    except TypeError as error:
        raise damaged(folder / OPTIONS_FILE, error) from error
