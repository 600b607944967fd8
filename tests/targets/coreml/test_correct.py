"""A benchmark of the device taken into its profile: the model is planned again and must agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import CliRunner

from advisor import advise
from advisor.cli import app
from advisor.plan import Plan
from advisor.targets.base import Artifact
from advisor.targets.coreml import ondevice
from advisor.testing import make_models

Edit = Callable[[dict[str, Any]], object]


def plan_for(target: str, name: str = "conv") -> Plan:
    model: nn.Module
    ((model, batches),) = [(m, batches) for each, m, batches in make_models() if each == name]
    return advise(
        model,
        target=target,
        calibration=batches,
        schemes=["w8"],
        pin={"*": "w8"},
        trials=1,
        cache=False,
    )


def benchmark(folder: Path, median_s: float | None = None) -> Path:
    """What benchmark.py writes, with the evaluator in Core ML's place, as if on a Mac with an M2.

    median_s: of every unit; None leaves the evaluator's own times.
    """
    artifact: Any = Artifact.load(folder)
    package, out = folder / ondevice.PACKAGE, folder / "benchmark.json"
    asked = ["--package", str(package), "--out", str(out), "--seconds", "0"]
    assert ondevice.main(asked, lambda path, unit: artifact.runner.run) == 0
    found = json.loads(out.read_text())
    found |= {"chip": "Apple M2", "system": "macOS 15.1"}
    for times in found["units"].values():
        times["median_s"] = median_s or times["median_s"]
    out.write_text(json.dumps(found))
    return out


def correct(path: Path, out: Path, *more: str) -> Any:
    return CliRunner().invoke(app, ["profiles", "correct", str(path), "-o", str(out), *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("m2") / "artifact"
    plan_for("m2").compile(made)
    return made


def latency(plan: Plan) -> float:
    assert plan.predicted.latency_s is not None
    return plan.predicted.latency_s.value


@pytest.mark.parametrize("times", [None, 0.3])
def test_the_corrected_profile_gives_the_measured_time(
    times: float | None, folder: Path, tmp_path: Path
) -> None:
    """times: of what the plan models; None: whatever the evaluator really took."""
    modelled = latency(Plan.load(folder))
    path = benchmark(folder, None if times is None else times * modelled)
    measured = json.loads(path.read_text())["units"]["all"]["median_s"]
    out = tmp_path / "my-m2.toml"
    result = correct(path, out)
    assert result.exit_code == 0, result.output
    again = plan_for(str(out))
    assert latency(again) == pytest.approx(measured, rel=0.01)
    assert abs(latency(again) / modelled - 1) > 0.1  # something had to be corrected
    shown = CliRunner().invoke(app, ["profiles", "--show", str(out), "--json"])
    assert "benchmark.py with compute units 'all' on Apple M2, macOS 15.1" in shown.output
    assert ondevice.digest(folder / ondevice.PACKAGE) in shown.output


def test_a_unit_alone_and_a_file_are_corrected_by_their_own_measurement(tmp_path: Path) -> None:
    folder, first, second = tmp_path / "gpu", tmp_path / "my-gpu.toml", tmp_path / "again.toml"
    plan_for("m2:gpu", "sequence").compile(folder)
    path = benchmark(folder)
    found = json.loads(path.read_text())
    found["units"]["gpu"]["median_s"] = 7e-4
    path.write_text(json.dumps(found))
    assert correct(path, first).exit_code == 0
    corrected = plan_for(str(first), "sequence")
    assert latency(corrected) == pytest.approx(7e-4, rel=0.01)
    corrected.save(folder)  # the package is the same
    path = benchmark(folder, 5e-4)
    assert "name it with --profile" in correct(path, second).output
    assert correct(path, second, "--profile", str(first)).exit_code == 0
    assert latency(plan_for(str(second), "sequence")) == pytest.approx(5e-4, rel=0.01)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda found: found.update(chip="Apple M3"), "measured on Apple M3, but the plan is for"),
        (lambda found: found.update(system="linux"), "Core ML runs on macOS only"),
        (lambda found: found.update(package_sha256="0"), "of another package"),
        (lambda found: found.update(schema=1), "schema 1, this version reads 2"),
        (lambda found: found.pop("measured"), "not what benchmark.py writes"),
        (lambda found: found["units"].pop("all"), "compared with --units all"),
        (lambda found: found["units"]["cpu"].update(median_s=0), "units.cpu.median_s: 0 is no"),
        (lambda found: found["units"]["all"].update(median_s=-1.0), "no positive time"),
        (lambda found: found["units"]["all"].update(median_s="fast"), "no positive time"),
        (lambda found: found["units"]["all"].update(median_s=60.0), "times apart"),
    ],
)
def test_what_cannot_be_is_refused(edit: Edit, says: str, folder: Path, tmp_path: Path) -> None:
    path = benchmark(folder, 1e-3)
    found = json.loads(path.read_text())
    edit(found)
    path.write_text(json.dumps(found))
    result = correct(path, tmp_path / "mine.toml")
    assert result.exit_code == 2
    assert says in result.output
    assert not (tmp_path / "mine.toml").exists()


def test_a_file_that_is_elsewhere_or_nothing_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "benchmark.json"
    path.write_text(benchmark(folder, 1e-3).read_text())
    out = tmp_path / "mine.toml"
    assert correct(path, out).exit_code == 2
    assert correct(path, out, "--plan", str(folder)).exit_code == 0
    path.write_text("[1]")
    assert "not what benchmark.py writes" in correct(path, out).output
