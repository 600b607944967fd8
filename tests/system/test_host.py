"""This machine as the target, measured for real with limits as short as they can be.

How long anything takes is never judged: only what there is, where it is from, and its sign.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from advisor import advise
from advisor.cli.app import app
from advisor.doctor import read_cpu
from advisor.errors import UsageError
from advisor.measure.machine import find_stopwatch
from advisor.measure.rates import rates_of
from advisor.plan import Plan
from advisor.planfile import load_measurements, noted_measurements
from advisor.profiles.host import measure_profile
from advisor.profiles.loader import load_profile
from advisor.profiles.schema import FAMILIES
from advisor.targets.capability import load_capability
from advisor.targets.onnxruntime import TARGET as ONNX_RUNTIME
from tests.system.small import build, load


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch, brief_rates: Path) -> Path:
    monkeypatch.setattr("advisor.measure.measure.LIMIT_S", 0.5)
    monkeypatch.setattr("advisor.measure.finalists.LIMIT_S", 0.5)
    monkeypatch.setenv("ADVISOR_MEASURE", "auto")
    return brief_rates


@pytest.mark.slow
def test_a_plan_for_this_machine_is_measured(brief: Path) -> None:
    model, _, batches = build()
    plan = advise(model, target="host", calibration=batches, threads=1, trials=2)
    profile = load_profile("host")
    assert (plan.target, plan.runtime) == ("host", "onnxruntime")
    assert plan.provenance.profile_digest == profile.digest
    assert len(plan.provenance.costs_digest) == 64  # of times of layers, not of the profile's
    latency = plan.predicted.latency_s
    assert latency is not None
    assert (latency.origin, latency.value > 0) == ("modelled", True)
    assert "measured on this machine" in latency.how
    assert plan.breakdown.timed_s == pytest.approx(latency.value)
    assert all(layer.bound == "timed" and layer.latency_s >= 0 for layer in plan.layers)
    assert "off by" in latency.how
    assert any("models timed on this machine: they are off by" in note for note in plan.notes)
    assert any(note.startswith(f"{read_cpu().model}") for note in plan.notes)
    noted = {each.subject: each for each in noted_measurements(plan)}
    assert {"plan", "fp32"} <= set(noted)
    assert all(each.value > 0 and read_cpu().model in each.machine for each in noted.values())
    path = plan.save(brief / "plan.json")
    assert {each.subject for each in load_measurements(path)} == set(noted)
    assert Plan.load(path, load()).compile(brief / "build").verify().ok


def test_host_has_a_stopwatch_where_the_runtime_does(brief: Path) -> None:
    assert brief.is_dir()
    profile = load_profile("host")
    assert find_stopwatch(profile, load_capability("onnxruntime")) is ONNX_RUNTIME
    litert = find_stopwatch(profile, load_capability("tflite"))
    assert litert is not None
    assert "LiteRT" in litert.machine()["runtime"]


def test_host_with_a_runtime_that_cannot_be_timed_is_refused(brief: Path) -> None:
    assert brief.is_dir()
    with pytest.raises(UsageError, match=r"which Core ML does not offer.*runtime='tflite'"):
        find_stopwatch(load_profile("host"), load_capability("coreml"))
    with pytest.raises(UsageError, match="coreml cannot be timed; possible are onnxruntime"):
        measure_profile(runtime="coreml")
    with pytest.raises(UsageError, match="coreml cannot be timed"):
        rates_of("coreml", lambda _done, _count: None)


@pytest.mark.slow
def test_litert_kernels_of_this_machine_make_a_profile(
    brief: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two small kernels of each kind: what each kind is made of is in the conversion."""
    for name, shapes in (
        ("LINEAR", ((64, 256, 256), (64, 256, 1024))),
        ("CONV", ((64, 64, 3, 14), (256, 64, 1, 28))),
        ("DEPTHWISE", ((192, 3, 28), (384, 3, 14))),
        ("LOOKUPS", ((4096, 384), (1024, 768))),
        ("SMALLER", (2**17, 2**19)),
        ("CHAIN", 20),
    ):
        monkeypatch.setattr(f"advisor.measure.rates.{name}", shapes)
    path = brief / "here.toml"
    result = CliRunner().invoke(
        app, ["profiles", "measure", "--runtime", "tflite", "-o", str(path)]
    )
    assert result.exit_code == 0, result.output
    profile = load_profile(path)
    assert (profile.runtime, profile.kind) == ("tflite", "cpu")
    assert set(profile.efficiency) == set(FAMILIES)
    memory, overhead = profile.memory, profile.overhead
    figures = (
        *profile.efficiency.values(),
        *(entry.ops_per_s for entry in profile.compute if entry.dtype in ("float32", "int8")),
        *(memory.bandwidth_bytes_per_s, memory.core_bandwidth_bytes_per_s, overhead.launch_s),
        overhead.dispatch_s,
    )
    for figure in figures:
        assert figure is not None
        assert figure.value > 0
        assert figure.origin == "measured"
        assert "LiteRT" in figure.source
        assert figure.says
    assert max(figure.value for figure in profile.efficiency.values()) <= 1
