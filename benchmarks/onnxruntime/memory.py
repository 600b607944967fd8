"""Predicted against measured process memory on ONNX Runtime.

    python -m benchmarks.onnxruntime.memory [--models NAME ...] [--out FILE]

Every model is written once per scheme and once with schemes in turn ("mixed"), opened and run in a
process of its own, at batch 1; in float32 and int8 also at batch 16. Predicted are the plan's
memory and what the runtime adds. Weights of all but the digits network and MiniLM are random:
memory does not depend on their values.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from advisor.assemble import build_problem
from advisor.budget import Budget
from advisor.doctor import read_cpu
from advisor.outputs import choose_kinds
from advisor.passes.calibrate import observe, spool_calibration
from advisor.passes.divergence import measure_powers
from advisor.passes.fx import flatten_inputs
from advisor.passes.group import class_tensors
from advisor.passes.rounding.store import RoundedWeights
from advisor.passes.shapes import deployment_inputs
from advisor.prepare import Prepared, check_deployment, prepare
from advisor.profiles.cost import process_overhead_bytes
from advisor.search.problem import Choice, evaluate
from advisor.simulate import Simulator
from advisor.targets.onnxruntime.export import export_onnx
from advisor.targets.onnxruntime.manifest import MODEL_FILE, SESSION_ENTRIES
from advisor.targets.onnxruntime.memory import measure_memory
from advisor.targets.onnxruntime.onnxfile import write_model
from advisor.targets.onnxruntime.session import runtime_version

SCHEMES: Final = ("fp32", "w8a8", "w8", "w4-g32")
MIXED: Final = "mixed"
ALL: Final = (*SCHEMES, MIXED)
RUNS: Final = 16
LARGE: Final = 16
"""The other batch."""
VOCABULARY: Final = 30_522
TOKENS: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model under one choice; bytes. error: predicted over measured peak, less one."""

    model: str
    batch: int
    schemes: str
    file_bytes: int
    predicted_peak_bytes: int
    measured_peak_bytes: int
    opening_peak_bytes: int
    running_peak_bytes: int
    resident_bytes: int
    runtime_bytes: int
    error: float


def digits() -> tuple[nn.Module, Any]:
    """The demo's trained network and one image."""
    from advisor.demo.digits import data, load

    return load(), data().test[:1]


def minilm() -> tuple[nn.Module, Any]:
    """MiniLM with its weights and one sequence of 128 tokens."""
    from examples.minilm import encoder

    return encoder(), _tokens()


def resnet() -> tuple[nn.Module, Any]:
    """The shape of ResNet-18 and one image of 224 pixels."""
    from transformers import ResNetConfig, ResNetForImageClassification

    shape: dict[str, Any] = {
        "depths": [2, 2, 2, 2],
        "hidden_sizes": [64, 128, 256, 512],
        "layer_type": "basic",
        "num_labels": 1000,
    }
    model: nn.Module = ResNetForImageClassification(ResNetConfig(**shape))
    return model.eval(), torch.randn(1, 3, 224, 224)


def mobilenet() -> tuple[nn.Module, Any]:
    """The shape of MobileNetV2 and one image of 224 pixels."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    model: nn.Module = MobileNetV2ForImageClassification(MobileNetV2Config())
    return model.eval(), torch.randn(1, 3, 224, 224)


def bert() -> tuple[nn.Module, Any]:
    """The shape of BERT-base and one sequence of 128 tokens."""
    from transformers import BertConfig, BertModel

    model: nn.Module = BertModel(BertConfig(), add_pooling_layer=False)
    return model.eval(), _tokens()


MODELS: Final[dict[str, Callable[[], tuple[nn.Module, Any]]]] = {
    "digits": digits,
    "minilm": minilm,
    "resnet": resnet,
    "mobilenet": mobilenet,
    "bert": bert,
}


def main() -> None:
    """Measure, print a line per row, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    rows: list[Row] = []
    for name in arguments.models:
        for row in [*measure_model(name, 1, ALL), *measure_model(name, LARGE, ALL[:2])]:
            rows.append(row)
            print(
                f"{row.model:9} {row.batch:2} {row.schemes:8} "
                f"predicted {row.predicted_peak_bytes / 1e6:7.1f} MB "
                f"measured {row.measured_peak_bytes / 1e6:7.1f} MB {row.error:+.1%} "
                f"(opening {row.opening_peak_bytes / 1e6:.1f}, running "
                f"{row.running_peak_bytes / 1e6:.1f}, resident {row.resident_bytes / 1e6:.1f}, "
                f"file {row.file_bytes / 1e6:.1f})",
                flush=True,
            )
    document = {
        "command": shlex.join(["python", "-m", "benchmarks.onnxruntime.memory", *sys.argv[1:]]),
        "executed_by": runtime_version(),
        "cpu": read_cpu().model,
        "rows": [asdict(row) for row in rows],
    }
    arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def measure_model(name: str, batch: int, choices: Sequence[str]) -> Iterator[Row]:
    """One row per uniform scheme, or ``MIXED``, at a batch."""
    torch.default_generator.manual_seed(0)
    model, inputs = MODELS[name]()
    deployment = check_deployment(
        target="host", runtime="onnxruntime", batch=batch, sequence=None, threads=1
    )
    prepared = prepare(
        model,
        inputs,
        None,
        deployment,
        budget=Budget(),
        schemes=list(SCHEMES),
        pins={},
        on_unsupported="keep",
    )
    with tempfile.TemporaryDirectory() as folder:
        simulator = simulator_of(prepared, Path(folder))
        for schemes in choices:
            yield _measure(name, schemes, prepared, simulator, Path(folder))


def _measure(
    name: str, schemes: str, prepared: Prepared, simulator: Simulator, folder: Path
) -> Row:
    setting = prepared.setting
    choice = _choice(prepared, schemes)
    written = export_onnx(simulator.quantized(choice, {}))
    target = folder / name / schemes
    target.mkdir(parents=True)
    write_model(written, target / MODEL_FILE)
    inputs = list(_inputs(prepared))
    memory = measure_memory(target / MODEL_FILE, SESSION_ENTRIES, inputs, threads=1)
    if memory is None:
        raise SystemExit("this system does not tell a process its memory")
    found = evaluate(build_problem(setting), choice)
    operators = len(list(written.graph))
    predicted = found.memory_bytes
    predicted += process_overhead_bytes(setting.capability, operators, found.size_bytes)
    measured = memory.runtime_bytes + max(memory.loading_peak_bytes, memory.running_peak_bytes)
    measured += sum(array.nbytes for array in inputs[0].values())  # there before the count
    return Row(
        model=name,
        batch=prepared.setting.batch,
        schemes=schemes,
        file_bytes=sum(file.stat().st_size for file in target.iterdir()),
        predicted_peak_bytes=round(predicted),
        measured_peak_bytes=measured,
        opening_peak_bytes=memory.loading_peak_bytes,
        running_peak_bytes=memory.running_peak_bytes,
        resident_bytes=memory.resident_bytes,
        runtime_bytes=memory.runtime_bytes,
        error=predicted / measured - 1,
    )


def _inputs(prepared: Prepared) -> Iterator[dict[str, Any]]:
    """Arrays by name for each run; token ids move on, until every row of a table was near one."""
    graph = prepared.setting.graph
    flat = deployment_inputs(graph, prepared.setting.batch, None)
    for run in range(RUNS):
        found: dict[str, Any] = {}
        for name, value in zip(graph.input_names, flat, strict=True):
            if isinstance(value, torch.Tensor):
                step = VOCABULARY // TOKENS * run // RUNS
                found[name] = (value + step if name == "input_ids" else value).numpy()
        yield found


def _choice(prepared: Prepared, schemes: str) -> Choice:
    """Per group the candidate with this scheme, or with the next one in turn; else float32."""
    turn = cycle(SCHEMES)
    found: list[int] = []
    for group in prepared.setting.groups:
        wanted = next(turn) if schemes == MIXED else schemes
        names = [option.scheme for option in prepared.setting.space.candidates[group.name]]
        found.append(names.index(wanted) if wanted in names else names.index("fp32"))
    return tuple(found)


def simulator_of(prepared: Prepared, folder: Path) -> Simulator:
    """Calibrated on the example alone: ranges do not change what a model takes in memory."""
    setting, graph = prepared.setting, prepared.setting.graph
    flat = flatten_inputs(graph.module, graph.args, graph.kwargs)
    data = spool_calibration(graph, [flat, flat], folder)
    tensors = frozenset(site.tensor for site in setting.regions.sites)
    kinds, _ = choose_kinds(graph, data.references.read(0), None)
    return Simulator(
        setting=setting,
        data=data,
        observations=observe(graph, data.scoring, tensors, []),
        classes=class_tensors(graph, setting.capability),
        kinds=kinds,
        powers=measure_powers(data.references),
        rounded=RoundedWeights(graph, scales=setting.capability.scale_rounding),
        loss=None,
    )


def _tokens() -> dict[str, torch.Tensor]:
    """One sequence, spread over the vocabulary."""
    ids = torch.arange(TOKENS)[None] * (VOCABULARY // TOKENS)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


if __name__ == "__main__":
    main()
