"""What cannot be done is said before it is tried, and what is wrong in a file is found."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from advisor.errors import InputError, MissingDependencyError, PlanError, UnsupportedError
from advisor.formats import scheme_named
from advisor.passes.capture import capture
from advisor.targets.capability import load_capability
from advisor.targets.coreai import TARGET
from advisor.targets.coreai.artifact import CoreaiArtifact
from advisor.targets.storedweight import pack_bits
from tests.targets.making import Quantizer
from tests.targets.models import Chain, Eigen, draw, seeded


@pytest.fixture
def artifact(make_quantized: Quantizer, tmp_path: Path) -> CoreaiArtifact:
    folder = tmp_path / "artifact"
    folder.mkdir()
    return TARGET.emit(make_quantized(seeded(Chain(1)), (draw(2, 64),), "w4"), folder)


@pytest.mark.parametrize("missing", ["coreai", "coreai_torch"])
def test_a_missing_package_names_the_command(
    missing: str, make_quantized: Quantizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized = make_quantized(seeded(Chain(1)), (draw(2, 64),), "fp32")
    find = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == missing else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(MissingDependencyError, match=r'pip install "quantadvisor\[coreai\]"'):
        TARGET.emit(quantized, tmp_path)
    assert not any(tmp_path.iterdir())


def test_other_systems_are_told_where_it_exists(
    make_quantized: Quantizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized = make_quantized(seeded(Chain(1)), (draw(2, 64),), "fp32")
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(MissingDependencyError, match="Linux and macOS only"):
        TARGET.emit(quantized, tmp_path)


def test_an_unsupported_operator_names_its_module(
    make_quantized: Quantizer, tmp_path: Path
) -> None:
    quantized = make_quantized(seeded(Eigen()), (draw(2, 8),), "fp32")
    with pytest.raises(UnsupportedError, match=r"bessel_j0.*module 'solver'"):
        TARGET.emit(quantized, tmp_path)


@pytest.mark.parametrize(
    ("width", "scheme", "reason"),
    [
        (80, "w4-g32", "block 32 does not divide 80 inputs"),
        (64, "lut4-c16", "16 does not divide 8 outputs"),
        (64, "fp16", "folds float16 weights into float32"),
        (64, "w8a8-dynamic", "no dynamic activation quantization"),
        (64, "nf4-g64", "has no nf4-g64"),
    ],
)
def test_what_is_not_offered_has_a_reason(width: int, scheme: str, reason: str) -> None:
    graph = capture(nn.Sequential(nn.Linear(width, 8)), (draw(2, width),), {})
    (layer,) = graph.layers
    support = load_capability("coreai").support(layer, scheme_named(scheme))
    assert not support.ok
    assert reason in support.reason


def test_an_altered_weight_is_found(artifact: CoreaiArtifact) -> None:
    assert artifact.verify().ok
    file = artifact.path / "model.aimodel" / "main.mlirb"
    data = bytearray(file.read_bytes())
    place = data.find(_stored_integers(artifact, "layers.0"))
    assert place > 0
    data[place + 5] ^= 0x01  # the lowest bit of one integer
    file.write_bytes(bytes(data))
    with pytest.raises(PlanError, match="is damaged"):
        TARGET.load(artifact.path).read_back()
    file.with_name("main.hash").write_bytes(hashlib.sha256(data).digest())
    verification = TARGET.load(artifact.path).verify()
    assert not verification.ok
    problems = [(m.name, m.found) for m in verification.mismatches]
    assert any(name == "layers.0" and "an integer or a scale" in found for name, found in problems)
    assert all(name != "head" for name, _ in problems)


def _stored_integers(artifact: CoreaiArtifact, layer: str) -> bytes:
    """The layer's integers as they should stand in the file, from the simulation's own."""
    from advisor.targets.simulation import load_simulation

    simulation = load_simulation(artifact.path / "check").module
    values = dict(simulation.named_buffers())[f"{layer}.weight_values"]
    return pack_bits(values.numpy().astype("uint8"), 4).tobytes()


def test_a_swapped_layer_is_found(artifact: CoreaiArtifact) -> None:
    """Names only say where to look: what is found there is compared."""
    names = artifact.settings.names.layers
    names["layers.0"], names["head"] = names["head"], names["layers.0"]
    verification = artifact.verify()
    assert not verification.ok
    assert verification.layers_matched == 0


def test_a_damaged_package_is_said(artifact: CoreaiArtifact) -> None:
    file = artifact.path / "model.aimodel" / "main.mlirb"
    file.write_bytes(b"no program")
    with pytest.raises(PlanError, match="compile the plan again"):
        TARGET.load(artifact.path).read_back()
    (artifact.path / "coreai.json").write_text("[]")
    with pytest.raises(PlanError, match=r"coreai\.json cannot be read"):
        TARGET.load(artifact.path)


def test_what_an_artifact_cannot_do(artifact: CoreaiArtifact) -> None:
    with pytest.raises(MissingDependencyError, match="macOS 27"):
        artifact.benchmark()
    with pytest.raises(InputError):
        artifact.run(draw(2, 63))
