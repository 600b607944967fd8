"""The script beside the package, as far as it runs without a Mac: all but Core ML itself."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from advisor.errors import MissingDependencyError, UnsupportedError
from advisor.targets.coreml import TARGET, ondevice
from advisor.targets.coreml.artifact import CoremlArtifact
from advisor.targets.coreml.runtime import CoremlRunner, EvaluatorRunner, check_system
from tests.targets.making import Quantizer
from tests.targets.models import Chain, draw, seeded


@pytest.fixture(scope="module")
def artifact(make_quantized: Quantizer, tmp_path_factory: pytest.TempPathFactory) -> CoremlArtifact:
    folder = tmp_path_factory.mktemp("artifact")
    return TARGET.emit(make_quantized(seeded(Chain(1)), (draw(3, 64),), "w8", batch=3), folder)


def _call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(folder / "benchmark.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_stands_alone(artifact: CoremlArtifact) -> None:
    helped = _call(artifact.path, "--help")
    assert helped.returncode == 0
    assert "--units" in helped.stdout
    wrong = _call(artifact.path, "--units", "tpu")
    assert wrong.returncode == 2
    assert "npu" in wrong.stderr
    missing = _call(artifact.path, "--package", "nowhere.mlpackage")
    assert missing.returncode == 2
    assert "nowhere.mlpackage does not exist" in missing.stderr


def test_a_mac_that_is_too_old_is_told_so() -> None:
    check_system("iOS18", "15.1")
    check_system("iOS15", "26.0")
    with pytest.raises(
        UnsupportedError, match=r"iOS18 \(macOS 15\), this Mac has macOS 14.2.*iOS17"
    ):
        check_system("iOS18", "14.2")


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is here")
def test_core_mls_own_runner_loads_the_package_and_needs_a_mac(artifact: CoremlArtifact) -> None:
    """As far as Core ML's own path goes elsewhere: coremltools refuses to predict."""
    assert isinstance(artifact.runner, EvaluatorRunner)
    runner = CoremlRunner(artifact.path, artifact.settings)
    with pytest.raises(Exception, match="macOS"):
        runner.run({"x": draw(3, 64).numpy()})


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is here")
def test_elsewhere_it_asks_for_a_mac(artifact: CoremlArtifact) -> None:
    tried = _call(artifact.path, "--seconds", "0")
    assert tried.returncode == 1
    assert "copy this folder to a Mac" in tried.stderr
    with pytest.raises(MissingDependencyError, match=r"python benchmark\.py"):
        artifact.benchmark()


def test_it_measures_every_unit_and_writes_json(artifact: CoremlArtifact) -> None:
    """The MIL evaluator stands in for Core ML; one unit fails, the others are kept."""
    seen: list[dict[str, np.ndarray[Any, Any]]] = []

    def opener(package: Path, unit: str) -> ondevice.Predict:
        assert package.exists()
        if unit == "npu":
            raise RuntimeError("no Neural Engine")

        def predict(feeds: ondevice.Feeds) -> object:
            seen.append(dict(feeds))
            return artifact.runner.run(feeds)

        return predict

    out = artifact.path / "measured.json"
    package = artifact.path / ondevice.PACKAGE
    asked = ["--package", str(package), "--out", str(out), "--seconds", "0"]
    assert ondevice.main([*asked, "--units", "cpu", "npu", "all"], opener) == 1
    found = json.loads(out.read_text())
    assert set(found["units"]) == {"cpu", "all"}
    assert found["package_sha256"] == ondevice.digest(package)
    assert datetime.fromisoformat(found["measured"]).utcoffset() == timedelta(0)
    assert found["failed"] == {"npu": "RuntimeError: no Neural Engine"}
    assert found["inputs"] == {"x": [3, 64]}
    for unit in found["units"].values():
        assert unit["runs"] == ondevice.LEAST_RUNS
        assert 0 < unit["fastest_s"] <= unit["median_s"] <= unit["slowest_s"]
    assert len(seen) == 2 * (ondevice.LEAST_RUNS + ondevice.WARM_UP)
    assert seen[0]["x"].dtype == np.float32
    assert seen[0]["x"].std() == pytest.approx(1, abs=0.2)
    assert ondevice.main([*asked, "--units", "cpu"], opener) == 0
