"""Every scheme is written, read back number by number, and evaluated against the simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from advisor.targets.capability import load_capability
from advisor.targets.coreml import TARGET, CoremlOptions
from advisor.testing import SequenceNet
from tests.targets.making import Quantizer
from tests.targets.models import Attention, Chain, Mixed, Recurrent, draw, mark_slow, seeded

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


@pytest.mark.parametrize("scheme", mark_slow(SCHEMES, fast={"w8a8"}))
def test_integers_are_bit_exact_in_float32(
    scheme: str, make_quantized: Quantizer, tmp_path: Path
) -> None:
    quantized = make_quantized(seeded(Chain(1, 128)), (draw(6, 128),), scheme, batch=3)
    used = {choice.scheme for choice in quantized.assignment.values()}
    assert scheme in used
    target = TARGET.with_options(CoremlOptions(compute="float32"))
    artifact = target.emit(quantized, tmp_path)
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    assert verification.layers_matched == 2
    assert verification.flips == 0
    assert "MIL evaluator" in verification.executed_by
    found = {layer.scheme for layer in artifact.read_back().values()}
    assert scheme in found
    if scheme != "fp16":  # which has its own dtype
        assert verification.max_abs_error < 1e-5


@pytest.mark.parametrize("scheme", mark_slow(["w8", "lut4", "w8a8"], fast={"w8a8"}))
@pytest.mark.parametrize("model", [Mixed, Attention])
def test_real_operators_in_float16(
    scheme: str, model: type[torch.nn.Module], make_quantized: Quantizer, tmp_path: Path
) -> None:
    inputs = draw(4, 3, 16, 16) if model is Mixed else draw(4, 6, 32)
    quantized = make_quantized(seeded(model()), (inputs,), scheme, batch=2)
    artifact = TARGET.emit(quantized, tmp_path)
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    with torch.no_grad():
        expected = quantized.module(inputs)
    torch.testing.assert_close(artifact.run(inputs), expected, rtol=0, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["fp32", "fp16", "w8"])
def test_recurrent_layers_are_their_steps(
    scheme: str, make_quantized: Quantizer, tmp_path: Path
) -> None:
    quantized = make_quantized(seeded(Recurrent()), (draw(2, 5, 8),), scheme)
    artifact = TARGET.emit(quantized, tmp_path)
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    assert verification.layers_total == 8
    assert artifact.read_back()["lstm.weight_hh_l0"].scheme == (
        "fp16" if scheme == "fp16" else "fp32"
    )


@pytest.mark.parametrize("compute", ["float16", "float32"])
def test_eight_schemes_in_one_package(
    compute: Literal["float16", "float32"], make_quantized: Quantizer, tmp_path: Path
) -> None:
    quantized = make_quantized(seeded(Chain(8)), (draw(8, 64),), {**EIGHT, "layers.0": "lut6"})
    artifact = TARGET.with_options(CoremlOptions(compute=compute)).emit(quantized, tmp_path)
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    found = artifact.read_back()
    assert {name: layer.scheme for name, layer in found.items()} == {**EIGHT, "layers.0": "lut6"}
    computed = {name: layer.kernel for name, layer in found.items()}
    assert computed.pop("head") == "linear in float32"
    assert set(computed.values()) == {f"linear in {compute}"}
    if compute == "float32":
        assert verification.flips == 0
        assert verification.max_abs_error < 1e-5


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
    "scheme", mark_slow(["w8", "lut1", "lut2", "lut4", "lut6", "lut8"], fast={"lut6"})
)
def test_older_systems_have_eight_bits_and_tables(
    scheme: str, make_quantized: Quantizer, tmp_path: Path
) -> None:
    quantized = make_quantized(seeded(Mixed()), (draw(2, 3, 16, 16),), scheme)
    target = TARGET.with_options(CoremlOptions(deployment="iOS16"))
    artifact = target.emit(quantized, tmp_path)
    assert artifact.package.version == 7  # iOS16's
    assert artifact.verify().ok
    assert scheme in {layer.scheme for layer in artifact.read_back().values()}


def test_the_same_plan_gives_the_same_weight_file(
    make_quantized: Quantizer, tmp_path: Path
) -> None:
    files: list[bytes] = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        schemes = {"layers.0": "w4-g32", "layers.1": "lut4"}
        TARGET.emit(make_quantized(seeded(Chain(2)), (draw(2, 64),), schemes), tmp_path / name)
        (weights,) = (tmp_path / name).rglob("weight.bin")
        files.append(weights.read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize(("scheme", "width"), [("lut4-c16", 16), ("w4-g32", 32)])
def test_one_group_of_everything_is_still_the_plan(
    scheme: str, width: int, make_quantized: Quantizer, tmp_path: Path
) -> None:
    """The package has one table, or one scale per row, as under lut4 and w4."""
    quantized = make_quantized(seeded(Chain(1, width)), (draw(2, width),), {"layers.0": scheme})
    artifact = TARGET.emit(quantized, tmp_path)
    assert artifact.verify().ok
    assert artifact.read_back()["layers.0"].scheme == scheme
