"""Predicted model bytes against the bytes on disk, for every scheme of ONNX Runtime and LiteRT.

    python -m benchmarks.cost.sizes [--runtimes NAME ...] [--models NAME ...]

Every model is written once per scheme, used wherever a layer can take it, with random weights and
biases, no two alike as after training: a converter stores equal ones once. Nothing is timed.
Predicted is the plan's ``file_bytes``: weights, scales and constants, and the graph by the rules of
the runtime. Writes ``sizes.json``; rows that are not asked for are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from advisor.assemble import build_problem
from advisor.atomic import write_text
from advisor.budget import Budget
from advisor.filesize import predict_file_bytes
from advisor.passes.graph import QuantizedGraph
from advisor.passes.shapes import deployment_inputs
from advisor.prepare import Prepared, check_deployment, prepare
from advisor.search.problem import Choice, evaluate
from advisor.targets.onnxruntime.export import export_onnx
from advisor.targets.onnxruntime.manifest import MODEL_FILE
from advisor.targets.onnxruntime.onnxfile import write_model as write_onnx
from advisor.targets.tflite.timing import sizes_of
from advisor.targets.tflite.write import write_model as write_tflite
from advisor.uniform import uniform_choices
from benchmarks.cost.models import Subject, build
from benchmarks.onnxruntime.memory import simulator_of

RESULTS: Final = Path(__file__).with_name("sizes.json")
MODELS: Final = {"resnet-18": 64, "mobilenet-v2": 64, "minilm-l6": 16, "efficientnet-b0": 64}
"""By name, pixels or tokens: small ones, since weights do not depend on them. The rules of the
runtimes were made from the first three."""

RUNTIMES: Final = {"onnxruntime": "intel-vnni", "tflite": "arm-neon"}
LIMIT: Final = 0.005


def main() -> int:
    """Write every model in every scheme, and one JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept: dict[str, dict[str, Any]] = {}
    if RESULTS.exists():
        rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
        kept = {_key(row): row for row in rows}
    for name in arguments.models:
        for runtime in arguments.runtimes:
            for row in measure(name, unlike(build(name, MODELS[name])), runtime):
                kept[_key(row)] = row
                print(
                    f"{row['runtime']:12} {name:13} {row['scheme']:18} "
                    f"{row['predicted_bytes']:11,} {row['disk_bytes']:11,} {row['error']:+.3%}",
                    flush=True,
                )
            rows = [kept[key] for key in sorted(kept)]
            write_text(RESULTS, json.dumps({**overall(rows), "rows": rows}, indent=1) + "\n")
            print(json.dumps(overall(rows)), flush=True)
    return 0


def unlike(subject: Subject) -> Subject:
    """The model with noise on biases and norms, which are all ones or zeros before training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*subject.model.parameters(), *subject.model.buffers()):
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator), alpha=0.1)
    return subject


def measure(name: str, subject: Subject, runtime: str) -> Iterator[dict[str, Any]]:
    """One row per scheme that some layer of the model can take."""
    deployment = check_deployment(
        target=RUNTIMES[runtime], runtime=runtime, batch=1, sequence=None, threads=1
    )
    prepared = prepare(
        subject.model,
        subject.inputs,
        None,
        deployment,
        budget=Budget(),
        schemes=None,
        pins={},
        on_unsupported="keep",
    )
    setting = prepared.setting
    problem = build_problem(setting)
    with tempfile.TemporaryDirectory(prefix="sizes-") as folder:
        simulator = simulator_of(prepared, Path(folder))
        for scheme in uniform_choices(setting):
            choice = simplest(prepared, scheme)
            quantized = simulator.quantized(choice, {})
            target = Path(folder) / scheme
            target.mkdir()
            WRITERS[runtime](quantized, prepared, target)
            disk = sum(file.stat().st_size for file in target.iterdir())
            constants = evaluate(problem, choice).size_bytes
            predicted = round(predict_file_bytes(setting, choice, constants) or constants)
            yield {
                "runtime": runtime,
                "model": name,
                "scheme": scheme,
                "constant_bytes": round(constants),
                "predicted_bytes": predicted,
                "disk_bytes": disk,
                "error": predicted / disk - 1,
            }


def simplest(prepared: Prepared, scheme: str) -> Choice:
    """The scheme wherever a group can take it, by its cheapest rounding."""
    found: list[int] = []
    for group in prepared.setting.groups:
        options = prepared.setting.space.candidates[group.name]
        able = [index for index, option in enumerate(options) if option.scheme == scheme]
        found.append(able[0] if able else 0)
    return tuple(found)


def overall(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many files are predicted within the limit, and the largest error."""
    errors = [abs(row["error"]) for row in rows]
    return {
        "files": len(errors),
        "within_half_a_percent": sum(error <= LIMIT for error in errors),
        "largest_error": max(errors),
    }


def _write_onnx(graph: QuantizedGraph, _prepared: Prepared, folder: Path) -> None:
    write_onnx(export_onnx(graph), folder / MODEL_FILE)


def _write_tflite(graph: QuantizedGraph, prepared: Prepared, folder: Path) -> None:
    inputs = deployment_inputs(prepared.setting.graph, prepared.setting.batch, None)
    content = write_tflite(graph, *sizes_of(prepared.setting.graph, inputs))
    (folder / "model.tflite").write_bytes(content)


WRITERS: Final[Mapping[str, Callable[[QuantizedGraph, Prepared, Path], None]]] = {
    "onnxruntime": _write_onnx,
    "tflite": _write_tflite,
}


def _key(row: Mapping[str, Any]) -> str:
    return "/".join(row[name] for name in ("runtime", "model", "scheme"))


if __name__ == "__main__":
    sys.exit(main())
