"""Memory of one model, measured in a process of its own.

``measure_memory`` starts this file as a program with a request; the program answers with one line
of JSON on stdout. It loads numpy and onnxruntime only: memory that something bigger had freed
before would be used again and hide the growth.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from advisor.errors import AdvisorError
from advisor.targets.benchmark import Memory
from advisor.targets.onnxruntime.session import open_session
from advisor.targets.resident import is_known, peak_bytes, resident_bytes, restart_peak

_EMPTY: Final = "empty.onnx"


def measure_memory(
    model: Path,
    entries: Mapping[str, str],
    inputs: Sequence[Mapping[str, np.ndarray[Any, Any]]],
    *,
    threads: int | None,
) -> Memory | None:
    """Growth of a fresh process that opens ``model`` and runs it; None where it is not told.

    entries: session configuration. inputs: by name, for each run; they are there before the count
    begins. The first run makes the arena grow, and weights beside the model are read when used.

    Raises:
        AdvisorError: the process failed; the message ends with its last line.
    """
    if not is_known():
        return None
    with TemporaryDirectory() as name:
        folder = Path(name)
        flat = {f"{run}.{key}": array for run, of in enumerate(inputs) for key, array in of.items()}
        np.savez(folder / "inputs.npz", allow_pickle=False, **flat)
        _write_empty(folder / _EMPTY)
        request = {
            "model": str(model.absolute()),
            "entries": dict(entries),
            "threads": threads,
            "folder": str(folder),
        }
        done = subprocess.run(
            [sys.executable, "-m", __name__, json.dumps(request)],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise AdvisorError(
            f"measuring the memory of {model} failed with code {done.returncode} ({last}); "
            "free memory on this machine, or run it alone"
        )
    return Memory(**json.loads(done.stdout))


def _write_empty(path: Path) -> None:
    """A model of one operator on one number: opening it loads the runtime and nothing else."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "empty", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(model.SerializeToString())


def _measure(model: Path, entries: Mapping[str, str], threads: int | None, folder: Path) -> Memory:
    with np.load(folder / "inputs.npz") as stored:
        inputs: list[dict[str, Any]] = []
        for name in stored:
            run, _, key = name.partition(".")
            inputs += [{} for _ in range(int(run) + 1 - len(inputs))]
            inputs[int(run)][key] = stored[name]
    began = resident_bytes()
    open_session(folder / _EMPTY, entries, threads=threads).run(None, {"x": np.zeros(1, "float32")})
    before = resident_bytes()
    restart_peak()
    session = open_session(model, entries, threads=threads)
    resident, loading = resident_bytes(), peak_bytes()
    restart_peak()
    for each in inputs:
        session.run(None, each)
    return Memory(
        runtime_bytes=before - began,
        resident_bytes=resident - before,
        loading_peak_bytes=loading - before,
        running_peak_bytes=peak_bytes() - before,
    )


def _main(text: str) -> None:
    request = json.loads(text)
    found = _measure(
        Path(request["model"]), request["entries"], request["threads"], Path(request["folder"])
    )
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1])
