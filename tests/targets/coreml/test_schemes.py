"""Every scheme is written, read back number by number, and evaluated against the simulation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from advisor.targets.capability import load_capability
from advisor.targets.coreml import TARGET, CoremlOptions
from advisor.testing import SequenceNet
from tests.targets.making import Quantizer
from tests.targets.models import Attention, Chain, Mixed, Recurrent, draw, seeded

SCHEMES = tuple(load_capability("coreml").schemes)

EIGHT = {
    "layers.0": "fp16",
    "layers.1": "w8",
    "layers.2": "w4",
    "layers.3": "w4-g32",
    "layers.4": "lut4",
    "layers.5": "lut3-c16",
    "layers.6": "lut4-i8",
    "layers.7": "w8a8",
    "head": "fp32",
}


def test_integers_are_bit_exact_in_float32(make_quantized: Quantizer, tmp_path: Path) -> None:
    """Every scheme there is, one layer each, in one package."""
    model = Chain(len(SCHEMES) - 1, 128, 32)
    layers = {
        f"layers.{index}" if index < len(model.layers) else "head": scheme
        for index, scheme in enumerate(SCHEMES)
    }
    quantized = make_quantized(seeded(model), (draw(6, 128),), layers, batch=3)
    assert {name: each.scheme for name, each in quantized.assignment.items()} == layers
    target = TARGET.with_options(CoremlOptions(compute="float32"))
    artifact = target.emit(quantized, tmp_path)
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    assert verification.layers_matched == len(SCHEMES)
    assert verification.flips == 0
    assert "MIL evaluator" in verification.executed_by
    assert {name: each.scheme for name, each in artifact.read_back().items()} == layers
    kinds = {name: each.kernel for name, each in artifact.read_back().items()}
    assert all(
        kind == f"linear in {'float16' if layers[name] == 'fp16' else 'float32'}"
        for name, kind in kinds.items()
    )


@pytest.mark.parametrize(
    ("model", "schemes"),
    [
        (Mixed, ("w8a8",)),
        (Attention, ("w8a8",)),
        pytest.param(Mixed, ("w8", "lut4"), marks=pytest.mark.slow),
    ],
    ids=["mixed", "attention", "mixed-weights"],
)
def test_real_operators_in_float16(
    model: type[nn.Module],
    schemes: tuple[str, ...],
    make_quantized: Quantizer,
    tmp_path: Path,
) -> None:
    inputs = draw(4, 3, 16, 16) if model is Mixed else draw(4, 6, 32)
    made = seeded(model())
    names = [name for name, each in made.named_modules() if hasattr(each, "weight")]
    layers = {name: schemes[index % len(schemes)] for index, name in enumerate(names)}
    quantized = make_quantized(made, (inputs,), layers, batch=2)
    assert set(schemes) <= {each.scheme for each in quantized.assignment.values()}
    artifact = TARGET.emit(quantized, tmp_path)
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    with torch.no_grad():
        expected = quantized.module(inputs)
    torch.testing.assert_close(artifact.run(inputs), expected, rtol=0, atol=0.02)


@pytest.mark.slow
def test_recurrent_layers_are_their_steps(make_quantized: Quantizer, tmp_path: Path) -> None:
    args = (draw(2, 3, 8),)
    names = make_quantized(seeded(Recurrent()), args, "fp32").assignment
    schemes = {
        name: "fp16" if name.startswith("lstm") else "fp32" if name.startswith("gru") else "w8"
        for name in names
    }
    quantized = make_quantized(seeded(Recurrent()), args, schemes)
    artifact = TARGET.emit(quantized, tmp_path)
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    assert verification.layers_total == 8
    found = {name: layer.scheme for name, layer in artifact.read_back().items()}
    assert found == {**schemes, "conv": "fp32"}  # one-dimensional ones take no integers
    assert sum(scheme == "fp16" for scheme in found.values()) == 4


def test_eight_schemes_in_one_package(make_quantized: Quantizer, tmp_path: Path) -> None:
    """In float16; that of all schemes is in float32."""
    quantized = make_quantized(seeded(Chain(8)), (draw(8, 64),), EIGHT)
    artifact = TARGET.emit(quantized, tmp_path)
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    found = artifact.read_back()
    assert {name: layer.scheme for name, layer in found.items()} == EIGHT
    computed = {name: layer.kernel for name, layer in found.items()}
    assert computed.pop("head") == "linear in float32"
    assert set(computed.values()) == {"linear in float16"}


def test_a_float32_layer_is_an_island(make_quantized: Quantizer, tmp_path: Path) -> None:
    schemes = {"layers.0": "fp16", "layers.1": "fp32", "head": "fp16"}
    artifact = TARGET.emit(make_quantized(seeded(Chain(2)), (draw(2, 64),), schemes), tmp_path)
    assert artifact.verify().ok
    kinds = {name: layer.kernel for name, layer in artifact.read_back().items()}
    assert kinds["layers.1"] == "linear in float32"
    assert kinds["layers.0"] == kinds["head"] == "linear in float16"


def test_a_wrong_number_in_the_package_is_found(make_quantized: Quantizer, tmp_path: Path) -> None:
    artifact = TARGET.emit(make_quantized(seeded(Chain(1)), (draw(2, 64),), "w8"), tmp_path)
    weights = tmp_path / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(weights.read_bytes())
    place = len(content) // 2
    content[place] ^= 0x40
    weights.write_bytes(bytes(content))
    verification = TARGET.load(tmp_path).verify()
    assert not verification.ok
    assert any("an integer or a scale differs" in m.found for m in verification.mismatches)
    assert "layers.0" in TARGET.load(tmp_path).debug()
    assert artifact.path == tmp_path


def test_token_ids_and_structured_outputs(make_quantized: Quantizer, tmp_path: Path) -> None:
    model = seeded(SequenceNet())
    tokens = torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(0))
    artifact = TARGET.emit(make_quantized(model, (tokens,), "w8", batch=2), tmp_path)
    found = artifact.run(tokens)
    assert set(found) == {"scores"}
    with torch.no_grad():
        torch.testing.assert_close(found["scores"], model(tokens)["scores"], rtol=0, atol=0.05)


@pytest.mark.parametrize(
    "schemes",
    [("lut6", "w8", "lut4"), pytest.param(("lut1", "lut8", "lut2"), marks=pytest.mark.slow)],
    ids="-".join,
)
def test_older_systems_have_eight_bits_and_tables(
    schemes: tuple[str, ...], make_quantized: Quantizer, tmp_path: Path
) -> None:
    layers = dict(zip(("stem", "grouped", "head"), schemes, strict=True))
    quantized = make_quantized(seeded(Mixed()), (draw(2, 3, 16, 16),), layers)
    target = TARGET.with_options(CoremlOptions(deployment="iOS16"))
    artifact = target.emit(quantized, tmp_path)
    assert artifact.package.version == 7  # iOS16's
    assert artifact.verify().ok
    found = {name: each.scheme for name, each in artifact.read_back().items()}
    assert found == {**layers, "up": "fp32"}


def test_the_same_plan_gives_the_same_weight_file(
    make_quantized: Quantizer, tmp_path: Path
) -> None:
    files: list[bytes] = []
    schemes = {"layers.0": "w4-g32", "head": "lut4"}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        TARGET.emit(make_quantized(seeded(Chain(1)), (draw(2, 64),), schemes), tmp_path / name)
        (weights,) = (tmp_path / name).rglob("weight.bin")
        files.append(weights.read_bytes())
    assert files[0] == files[1]


def test_one_group_of_everything_is_still_the_plan(
    make_quantized: Quantizer, tmp_path: Path
) -> None:
    """The package has one table, and one scale per row, as under lut4 and w4."""
    model = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 16))
    schemes = {"0": "w4-g32", "1": "lut4-c16"}
    artifact = TARGET.emit(make_quantized(seeded(model), (draw(2, 32),), schemes), tmp_path)
    assert artifact.verify().ok
    assert {name: each.scheme for name, each in artifact.read_back().items()} == schemes
