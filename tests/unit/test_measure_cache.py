"""What was measured is kept under everything it depends on, and read back the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from advisor.doctor import read_cpu
from advisor.errors import MissingDependencyError, UsageError
from advisor.measure import machine
from advisor.measure.cache import keep
from advisor.measure.costs import MeasuredCosts
from advisor.measure.machine import find_stopwatch
from advisor.profiles.loader import load_profile
from advisor.targets.registry import capability_named


def costs(rest_s: float = 1.5e-3) -> MeasuredCosts:
    return MeasuredCosts(
        reference_s=4e-3,
        rest_s=rest_s,
        layers={"fc": {"fp32": 2e-3, "w8a8": 5e-4}},
        quantize_s={"x": 1e-5},
        dequantize_s={},
        integer_s={"add": -2e-6},
        noise=0.01,
        error=0.02,
        models=9,
        machine={"cpu": "some", "runtime": "onnxruntime 1"},
    )


def refuse() -> MeasuredCosts:
    raise AssertionError("measured again")


def test_kept_costs_come_back_equal(tmp_path: Path) -> None:
    first = keep(tmp_path, {"model": "a"}, MeasuredCosts, costs)
    again = keep(tmp_path, {"model": "a"}, MeasuredCosts, refuse)
    assert again == first
    assert again.digest == costs().digest


def test_every_part_of_the_key_counts(tmp_path: Path) -> None:
    keep(tmp_path, {"model": "a", "threads": 1}, MeasuredCosts, costs)
    other = keep(tmp_path, {"model": "a", "threads": 2}, MeasuredCosts, lambda: costs(7.0))
    assert other.rest_s == 7.0
    assert len(list(tmp_path.iterdir())) == 2


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    keep(None, {"model": "a"}, MeasuredCosts, costs)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["{", "[]", '{"rest_s": "slow"}'])
def test_damaged_file_is_measured_again(damage: str, tmp_path: Path) -> None:
    keep(tmp_path, {"model": "a"}, MeasuredCosts, costs)
    (path,) = tmp_path.iterdir()
    path.write_text(damage)
    assert keep(tmp_path, {"model": "a"}, MeasuredCosts, costs) == costs()
    assert keep(tmp_path, {"model": "a"}, MeasuredCosts, refuse) == costs()


def test_digest_tells_costs_apart() -> None:
    assert costs().digest != costs(2.0).digest


def test_never_means_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVISOR_MEASURE", "never")
    assert find_stopwatch(load_profile("intel-vnni"), capability_named("onnxruntime")) is None


def test_unknown_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVISOR_MEASURE", "sometimes")
    with pytest.raises(UsageError, match=r'"auto".*"never"'):
        find_stopwatch(load_profile("m2"), capability_named("coreml"))


def test_other_hardware_stays_modelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVISOR_MEASURE", "auto")
    for name in ("m2", "h100", "arm-neon"):
        profile = load_profile(name)
        assert find_stopwatch(profile, capability_named(profile.runtime)) is None


def test_vnni_needs_the_instruction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVISOR_MEASURE", "auto")
    found = find_stopwatch(load_profile("vnni"), capability_named("onnxruntime"))
    assert (found is not None) == ("avx512_vnni" in (read_cpu().features or ()))
    monkeypatch.setitem(machine.FEATURE, "intel-vnni", "no_such_instruction")
    assert find_stopwatch(load_profile("vnni"), capability_named("onnxruntime")) is None


def test_host_without_its_runtime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        load_profile("host")
