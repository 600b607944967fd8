"""Run emitted files on a GPU through ONNX Runtime, and hold the outputs against the simulation.

    python benchmarks/nvidia/run_onnx.py FOLDER --out h100-onnx.json

Needs PyTorch for CUDA (its libraries are the ones loaded) and onnxruntime-gpu, nothing of this
package. FOLDER has one folder per file, with ``model.onnx`` as it was emitted and
``expected.npz``: inputs by name after "in_", ``sim`` (the simulation's first output) and ``ref``
(the float model's). For every file, as written (no graph optimisation) and optimised:

``to_simulation``, ``simulation_to_float``, ``size``: Frobenius norms of the difference between the
card and the simulation, between simulation and float model, and of the simulation's output.
``same_top1``: share of rows with the same largest output. ``nodes``: how many ran on which
provider. TF32 is off.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch  # noqa: F401  # loads the CUDA libraries

PROVIDERS = [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]


def run(folder: Path, level: Any, scratch: Path) -> dict[str, Any]:
    """One file at one level of graph optimisation."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.enable_profiling = True
    options.profile_file_prefix = str(scratch / folder.name)
    session: Any = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=PROVIDERS
    )
    with np.load(folder / "expected.npz") as kept:
        feed = {each.name: kept[f"in_{each.name}"] for each in session.get_inputs()}
        simulated, reference = (kept[name].astype(np.float64) for name in ("sim", "ref"))
    found = np.asarray(session.run(None, feed)[0]).astype(np.float64)
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = Counter(
        event["args"]["provider"]
        for event in events
        if event.get("cat") == "Node" and "provider" in event.get("args", {})
    )
    return {
        "to_simulation": float(np.linalg.norm(found - simulated)),
        "simulation_to_float": float(np.linalg.norm(simulated - reference)),
        "size": float(np.linalg.norm(simulated)),
        "same_top1": float((found.argmax(-1) == simulated.argmax(-1)).mean()),
        "nodes": dict(nodes),
    }


def main() -> None:
    """Run every file and write what was found."""
    parser = argparse.ArgumentParser(description="Run emitted ONNX files on a GPU")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    levels = onnxruntime.GraphOptimizationLevel
    named = {"as_written": levels.ORT_DISABLE_ALL, "optimized": levels.ORT_ENABLE_ALL}
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for folder in sorted(path.parent for path in arguments.folder.glob("*/model.onnx")):
            result[folder.name] = {
                name: run(folder, level, Path(scratch)) for name, level in named.items()
            }
            print(folder.name, json.dumps(result[folder.name]), flush=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
