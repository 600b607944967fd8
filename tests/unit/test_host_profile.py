"""The profile of this machine: written from rates, read back by the strict parser."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from advisor.cli.app import app
from advisor.doctor import Cpu
from advisor.profiles.host import measure_profile, profile_name, write_profile
from advisor.profiles.loader import load_profile
from advisor.profiles.parse import parse_profile
from advisor.profiles.rates import Rates

CPU = Cpu(model='Some "odd" CPU @ 2.0GHz', cores=4, features=("avx2",))
RATES = Rates(
    float32_ops_per_s=1e11,
    int8_ops_per_s=4e11,
    bandwidth_bytes_per_s=2e10,
    core_bandwidth_bytes_per_s=3e10,
    launch_s=-0.0,
    dispatch_s=4e-6,
    linear_ops_per_s=8e10,
    conv_ops_per_s=2e11,
    depthwise_ops_per_s=1e6,
    gather_bytes_per_s=1e10,
    elementwise_ops_per_s=2e10,
)


def test_profile_from_rates_is_valid_and_says_measured() -> None:
    profile = parse_profile(write_profile(RATES, CPU, "onnxruntime 1.0"), "host.toml")
    assert profile.name == profile_name(CPU) == "some-odd-cpu-2-0ghz-4"
    assert profile.runtime == "onnxruntime"
    assert profile.cores is not None
    assert profile.cores.value == 4
    assert {entry.dtype: entry.ops_per_s.value for entry in profile.compute} == {
        "float32": 1e11,
        "int8": 4e11,
    }
    assert profile.efficiency["linear"].value == pytest.approx(0.8)
    assert profile.efficiency["embedding"].value == pytest.approx(0.5)
    assert profile.efficiency["elementwise"].value == pytest.approx(0.2)
    for figure in (*profile.efficiency.values(), profile.overhead.launch_s):
        assert figure.origin == "measured"
        assert "onnxruntime 1.0" in figure.source


def test_a_processor_without_vnni_says_so() -> None:
    """AVX2 alone adds 8-bit products in 16 bits; a profile says nothing of other processors."""
    for features, platform in (
        (("avx2",), {"vnni": "0"}),
        (("avx2", "avx512f"), {"vnni": "0"}),
        (("avx2", "avx512f", "avx512_vnni"), {}),
        (("avx2", "avx_vnni"), {}),
        (("asimd", "asimddp"), {}),
        (None, {}),
    ):
        cpu = replace(CPU, features=features)
        profile = parse_profile(write_profile(RATES, cpu, "onnxruntime 1.0"), "host.toml")
        assert dict(profile.platform) == platform


def test_figures_stay_inside_what_a_profile_may_say() -> None:
    profile = parse_profile(write_profile(RATES, CPU, "onnxruntime 1.0"), "host.toml")
    assert profile.efficiency["conv"].value == 1.0
    assert profile.efficiency["depthwise"].value == 1e-3
    assert profile.overhead.launch_s.value == 1e-9
    one_core = profile.memory.core_bandwidth_bytes_per_s
    assert one_core is not None
    assert one_core.value <= profile.memory.bandwidth_bytes_per_s.value


def test_host_is_measured_once(brief_rates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_profile("host")
    assert first.name == "host"
    monkeypatch.setattr("advisor.targets.onnxruntime.rates.measure_rates", None)
    assert load_profile("HOST") == first
    assert len(list((brief_rates / "cache" / "profiles").iterdir())) == 1


def test_command_writes_a_profile_that_can_be_a_target(brief_rates: Path) -> None:
    steps: list[tuple[int, int]] = []
    assert tomllib.loads(measure_profile(lambda done, total: steps.append((done, total))))
    assert steps[-1] == (len(steps) - 1, len(steps) - 1)
    path = brief_rates / "here.toml"
    result = CliRunner().invoke(app, ["profiles", "measure", "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert load_profile(path).kind == "cpu"
    assert CliRunner().invoke(app, ["profiles"]).exit_code == 0
