"""The benchmark of a real artifact: its numbers fit each other and the files. Never its speed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from advisor import advise
from advisor.cli import app
from advisor.errors import AdvisorError, InputError, PlanError, UsageError
from advisor.targets.benchmark import Benchmark, Memory, Variant
from advisor.targets.onnxruntime import TARGET
from advisor.targets.onnxruntime.artifact import OnnxRuntimeArtifact
from advisor.targets.onnxruntime.memory import measure_memory
from advisor.targets.resident import is_known

QUICK: dict[str, Any] = {"rounds": 6, "seconds": 0.05}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(500, 256)
        self.body = nn.Linear(256, 2048)
        self.head = nn.Linear(2048, 5)

    def forward(self, ids: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.tanh(self.body(self.table(ids)))).mean(1) * gain
        return logits


def example() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randint(0, 500, (2, 6)), torch.rand(5)


@pytest.fixture(scope="module")
def artifact(make_quantized: Any, tmp_path_factory: pytest.TempPathFactory) -> OnnxRuntimeArtifact:
    torch.manual_seed(1)
    graph = make_quantized(Model(), example(), {"table": "w8", "body": "w8a8", "head": "w4-g32"})
    return TARGET.emit(graph, tmp_path_factory.mktemp("artifact"))


@pytest.fixture(scope="module")
def found(artifact: OnnxRuntimeArtifact) -> Benchmark:
    return artifact.benchmark(batch=3, threads=1, **QUICK)


def test_float_file_computes_the_float_model(artifact: OnnxRuntimeArtifact) -> None:
    torch.manual_seed(1)
    model = Model().eval()
    session = onnxruntime.InferenceSession(
        artifact.path / "check" / "float.onnx", providers=["CPUExecutionProvider"]
    )
    ids, gain = example()
    (logits,) = session.run(None, {"ids": ids.numpy(), "gain": gain.numpy()})
    torch.testing.assert_close(
        torch.as_tensor(np.asarray(logits)), model(ids, gain).detach(), rtol=1e-5, atol=1e-6
    )


def test_numbers_fit_each_other(found: Benchmark) -> None:
    for variant in (found.float_model, found.plan):
        assert 0 < variant.latency_min_s <= variant.latency_s <= variant.latency_p90_s
        assert variant.throughput_per_s <= found.batch / variant.latency_min_s
        assert variant.throughput_per_s > 0
    ratio = found.latency_ratio
    assert 0 < ratio.low <= ratio.value <= ratio.high
    assert (found.batch, found.threads, found.rounds) == (3, 1, 6)
    assert found.shapes == {"ids": (3, 6), "gain": (5,)}
    assert found.executed_by == f"onnxruntime {onnxruntime.__version__}"
    assert found.cpu


def test_file_bytes_are_those_on_disk(artifact: OnnxRuntimeArtifact, found: Benchmark) -> None:
    size = (artifact.path / "model.onnx").stat().st_size
    assert found.plan.file_bytes == size
    whole = sum(p.stat().st_size for p in (artifact.path / "check").glob("float.onnx*"))
    assert found.float_model.file_bytes == whole
    weights = 4 * sum(p.numel() for p in Model().parameters())
    assert weights < whole < weights + 20_000


@pytest.mark.skipif(not is_known(), reason="this system does not tell a process its memory")
def test_memory_holds_the_weights(found: Benchmark) -> None:
    def memory(variant: Variant) -> Memory:
        assert variant.memory is not None
        return variant.memory

    weights = 4 * sum(p.numel() for p in Model().parameters())
    big, small = memory(found.float_model), memory(found.plan)
    assert weights <= big.resident_bytes <= big.loading_peak_bytes
    assert big.resident_bytes <= big.running_peak_bytes
    assert small.resident_bytes < big.resident_bytes
    assert 0 < small.runtime_bytes < 50e6


def test_sequence_and_batch_may_change(artifact: OnnxRuntimeArtifact) -> None:
    longer = artifact.benchmark(batch=1, sequence=40, **QUICK)
    assert longer.shapes["ids"] == (1, 40)
    assert longer.threads is None


def test_fixed_batch_takes_no_other(make_quantized: Any, tmp_path: Path) -> None:
    graph = make_quantized(nn.Sequential(nn.Linear(8, 4)), (torch.rand(2, 8),), {}, fixed=True)
    artifact = TARGET.emit(graph, tmp_path)
    assert artifact.benchmark(**QUICK).batch == 2
    with pytest.raises(InputError, match="takes only 2"):
        artifact.benchmark(batch=3, **QUICK)
    with pytest.raises(InputError, match="takes only 8"):
        artifact.benchmark(sequence=3, **QUICK)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"batch": 0}, InputError, "ask 1 or more"),
        ({"sequence": -1}, InputError, "ask 1 or more"),
        ({"rounds": 2}, UsageError, "ask more rounds"),
        ({"seconds": -1.0}, UsageError, "positive"),
    ],
)
def test_bad_arguments_are_refused(
    artifact: OnnxRuntimeArtifact, arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        artifact.benchmark(**{**QUICK, **arguments})


@pytest.mark.parametrize("name", ["float.onnx", "examples.safetensors"])
def test_folder_shipped_without_its_checks_is_refused(
    artifact: OnnxRuntimeArtifact, tmp_path: Path, name: str
) -> None:
    copy = Path(shutil.copytree(artifact.path, tmp_path / "copy"))
    (copy / "check" / name).unlink()
    with pytest.raises(PlanError, match="compile the plan again"):
        TARGET.load(copy).benchmark(**QUICK)


@pytest.mark.skipif(not is_known(), reason="this system does not tell a process its memory")
def test_failed_measurement_says_why(tmp_path: Path) -> None:
    with pytest.raises(AdvisorError, match="cannot open"):
        measure_memory(tmp_path / "none.onnx", {}, [], threads=1)


def test_worker_loads_nothing_heavy(root: Path) -> None:
    code = (
        "import sys\nimport advisor.targets.onnxruntime.memory\n"
        "print([name for name in ('torch', 'scipy', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_command_prints_and_writes_the_comparison(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)).eval(),
        torch.rand(4, 64),
    )
    plan = advise(
        model, target="intel-vnni", inputs=x, calibration=[x, x], batch=2, trials=1, cache=False
    )
    plan.compile(tmp_path / "built")
    written = tmp_path / "bench.json"
    options = ["--threads", "1", "--seconds", "0.1", "--json", "-o", str(written)]
    result = CliRunner().invoke(app, ["bench", str(tmp_path / "built"), *options])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document == json.loads(written.read_text())
    assert (document["batch"], document["threads"]) == (2, 1)
    assert list(document["shapes"].values()) == [[2, 64]]
    assert document["plan"]["file_bytes"] == (tmp_path / "built" / "model.onnx").stat().st_size
    refused = CliRunner().invoke(app, ["bench", str(tmp_path)])
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: ")
