"""Write the artifact's files: the model, how to build it, and what to check it against."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from advisor.errors import PlanError
from advisor.passes.graph import QuantizedGraph
from advisor.targets.describe import describe
from advisor.targets.manifest import CHECK_FOLDER, Manifest, write_json, write_manifest
from advisor.targets.onnxruntime.onnxfile import write_model
from advisor.targets.options import check_options
from advisor.targets.simulation import save_simulation
from advisor.targets.tensorrt import build_engine
from advisor.targets.tensorrt.export import export_onnx
from advisor.targets.tensorrt.options import TensorrtOptions
from advisor.targets.tensorrt.shapes import KEYS, Ranges, ranges_of, write_ranges

MODEL_FILE: Final = "model.onnx"
OPTIONS_FILE: Final = "options.json"
SCRIPT_FILE: Final = "build_engine.py"
COMMAND_FILE: Final = "trtexec.sh"


def write_artifact(graph: QuantizedGraph, out: Path, options: TensorrtOptions) -> None:
    """Write every file of the artifact but acceptance.json into the existing folder ``out``.

    Raises:
        UnsupportedError: a layer, a tensor or an output has a form this target cannot write.
        VerificationError: a dimension that should be dynamic became fixed.
    """
    manifest = write_shipped(graph, out, options)
    save_simulation(graph, tuple(record.name for record in manifest.inputs), out / CHECK_FOLDER)


def write_shipped(graph: QuantizedGraph, out: Path, options: TensorrtOptions) -> Manifest:
    """Write what ships, and nothing to check it with.

    Raises:
        UnsupportedError: a layer, a tensor or an output has a form this target cannot write.
        VerificationError: a dimension that should be dynamic became fixed.
    """
    model = export_onnx(graph)
    manifest = describe(graph)
    ranges = ranges_of(graph, manifest)
    write_model(model, out / MODEL_FILE)
    write_manifest(manifest, out)
    write_json(out / OPTIONS_FILE, asdict(options))
    write_ranges(ranges, out)
    shutil.copyfile(build_engine.__file__, out / SCRIPT_FILE)
    (out / COMMAND_FILE).write_text(trtexec_command(ranges, options), encoding="utf-8")
    return manifest


def trtexec_command(ranges: Ranges, options: TensorrtOptions) -> str:
    """A shell script around TensorRT's own command line tool."""
    arguments = ["--onnx=model.onnx", "--saveEngine=model.engine"]
    for key in KEYS:
        shapes = ",".join(
            f"{name}:{'x'.join(str(size) for size in shape[key])}" for name, shape in ranges.items()
        )
        if shapes:
            arguments.append(f"--{key}Shapes={shapes}")
    arguments += ["--noTF32"] if options.tf32 == "off" else []
    arguments += [
        "--timingCacheFile=timing.cache",
        "--profilingVerbosity=detailed",
        "--exportLayerInfo=layers.json",
    ]
    lines = " \\\n  ".join(("trtexec", *arguments, '"$@"'))
    return (
        "#!/bin/sh\n"
        "# Builds the engine with TensorRT 11. With TensorRT 10 run it with --stronglyTyped.\n"
        f'cd "$(dirname "$0")" || exit 1\n{lines}\n'
    )


def read_options(folder: Path) -> TensorrtOptions:
    """Read options.json.

    Raises:
        PlanError: missing or damaged.
    """
    path = folder / OPTIONS_FILE
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        options = TensorrtOptions(**kept)
        check_options("tensorrt", options)
    except (OSError, ValueError, TypeError) as error:
        raise PlanError(f"{path} cannot be read ({error}); compile the plan again") from error
    return options
