"""The shipped script, its branch for TensorRT included.

TensorRT cannot be installed without the vendor's own server. TensorRT-RTX is its sibling with the
same interface, so it is what the branch runs here, under TensorRT's name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from advisor.api import advise
from advisor.targets.tensorrt import build_engine
from advisor.targets.tensorrt.artifact import TensorrtArtifact
from advisor.targets.tensorrt.build_engine import build
from tests.targets.tensorrt.floats import float32_product
from tests.targets.tensorrt.rejected import mixed_operands

rtx: Any = pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.filterwarnings("ignore:Use .* instead:DeprecationWarning")

NAMED = """from tensorrt_rtx import *
from tensorrt_rtx import __version__
"""


class Watched(rtx.Builder):  # type: ignore[misc]  # it comes without types
    """Keeps the configurations that it gave."""

    configs: tuple[Any, ...] = ()

    def create_builder_config(self) -> Any:
        config = super().create_builder_config()
        Watched.configs += (config,)
        return config


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """TensorRT-RTX as the module that the branch for TensorRT imports."""
    named = ModuleType("tensorrt")
    vars(named).update({key: kept for key, kept in vars(rtx).items() if not key.startswith("__")})
    vars(named).update(__version__=rtx.__version__, Builder=Watched)
    monkeypatch.setitem(sys.modules, "tensorrt", named)
    monkeypatch.setattr(Watched, "configs", ())
    return named


@pytest.fixture
def product(tmp_path: Path) -> Path:
    onnx.save(float32_product(), tmp_path / "product.onnx")
    return tmp_path / "product.onnx"


def test_the_timing_cache_is_written_and_read_again(
    tensorrt: ModuleType, product: Path, tmp_path: Path
) -> None:
    """TensorRT-RTX takes the calls and keeps no times: what a cache is worth is not seen here."""
    cache = tmp_path / "timing.cache"
    built = build(product, {}, backend="trt", cache=cache)
    assert built.engine
    assert built.problems == ()
    assert built.version == tensorrt.__version__
    first = cache.read_bytes()
    assert first
    again = build(product, {}, backend="trt", cache=cache)
    assert again.engine == built.engine
    assert cache.read_bytes() == first


def test_tf32_is_a_flag_of_the_builder_and_changes_the_engine(
    tensorrt: ModuleType, product: Path
) -> None:
    engines = [
        build(product, {}, backend="trt", tf32=asked).engine for asked in (True, False, True)
    ]
    flags = [config.get_flag(tensorrt.BuilderFlag.TF32) for config in Watched.configs]
    assert flags == [True, False, True]
    assert engines[0] == engines[2] != engines[1]


def test_a_version_without_the_flag_is_strongly_typed_anyway(
    tensorrt: ModuleType, product: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TensorRT 11 may have it, which knows no other kind of network."""
    path = product.with_name("mixed.onnx")
    onnx.save(mixed_operands(), path)
    wanted = build(product, {}, backend="trt").engine
    refused = build(path, {}, backend="trt")
    monkeypatch.setattr(tensorrt, "NetworkDefinitionCreationFlag", object())
    assert build(product, {}, backend="trt").engine == wanted
    assert refused.engine is None
    assert build(path, {}, backend="trt").problems == refused.problems


def test_what_is_no_model_is_refused_with_a_reason(tensorrt: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("nothing of the kind")
    found = build(tmp_path / "text.onnx", {}, backend="trt")
    assert found.engine is None
    assert "Failed to parse the ONNX model" in found.problems[0]
    assert "cannot be found" in build(tmp_path / "none.onnx", {}, backend="trt").problems[0]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> TensorrtArtifact:
    """A float32 model whose engine must not use TF32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32)).eval()
    plan = advise(model, target="a100", inputs=torch.randn(2, 64), trials=1, cache=False)
    folder = tmp_path_factory.mktemp("exact") / "artifact"
    compiled = plan.compile(folder, options={"tf32": "off"})
    assert isinstance(compiled, TensorrtArtifact)
    return compiled


def test_tf32_off_reaches_every_way_of_building(
    exact: TensorrtArtifact, tensorrt: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert exact.options.tf32 == "off"
    assert "--noTF32" in (exact.path / "trtexec.sh").read_text()
    monkeypatch.setattr(rtx, "Builder", Watched)
    assert exact.verify().ok
    script = ["build_engine.py", "--model", str(exact.path / "model.onnx")]
    script += ["--profile", str(exact.path / "profile.json"), "--out", str(tmp_path / "engine")]
    script += ["--layers", str(tmp_path / "layers.json"), "--backend", "rtx", "--sm", "80"]
    options = ["--options", str(exact.path / "options.json")]
    for given in (options, ["--no-tf32"], []):
        monkeypatch.setattr(sys, "argv", [*script, *given])
        assert build_engine.main() == 0
    flags = [config.get_flag(rtx.BuilderFlag.TF32) for config in Watched.configs]
    assert flags == [False, False, False, True]
    assert (tmp_path / "engine").stat().st_size > 0


def test_the_script_builds_with_tensorrt(exact: TensorrtArtifact, tmp_path: Path) -> None:
    """In a process of its own that knows nothing of this package."""
    (tmp_path / "tensorrt.py").write_text(NAMED)
    engine, cache = tmp_path / "model.engine", tmp_path / "timing.cache"
    done = subprocess.run(
        [
            *(sys.executable, "-P", str(exact.path / "build_engine.py")),
            *("--out", str(engine), "--timing-cache", str(cache)),
            *("--layers", str(tmp_path / "layers.json")),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert engine.stat().st_size > 0, done.stderr
    assert cache.stat().st_size > 0
    if torch.cuda.is_available():
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / "layers.json").read_text())
    else:
        assert done.returncode == 2
        assert "is written, but TensorRT cannot load it here" in done.stderr
        assert "Traceback" not in done.stderr
