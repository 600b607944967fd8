"""Every scheme is written, read back number by number, and executed by Core AI."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from advisor.passes.fx import clone, finish, insert_constant
from advisor.passes.graph import QuantizedGraph
from advisor.passes.ops import DEQUANTIZE_AFFINE
from advisor.targets.capability import load_capability
from advisor.targets.coreai import TARGET
from advisor.testing import SequenceNet
from tests.targets.making import Quantizer
from tests.targets.models import Attention, Chain, Mixed, Recurrent, draw, seeded
from tests.zoo.models import architecture

SCHEMES = tuple(load_capability("coreai").schemes)

KINDS = ("fp32", "w8", "w4", "w8-g32", "w2-g32", "lut3", "lut8", "lut4-c16", "lut4-i8", "w8a8")
"""One scheme of each form in the file; the others have other bits or another block."""


def test_every_scheme_in_one_package(make_quantized: Quantizer, tmp_path: Path) -> None:
    plan = {f"layers.{index}": scheme for index, scheme in enumerate(SCHEMES)} | {"head": "w8"}
    model = seeded(Chain(len(SCHEMES)))
    quantized = make_quantized(model, (draw(6, 64),), plan, batch=3)
    assert {name: choice.scheme for name, choice in quantized.assignment.items()} == plan
    artifact = TARGET.emit(quantized, tmp_path)
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    assert verification.layers_matched == len(SCHEMES) + 1
    assert verification.compared > 0
    assert verification.flips == 0
    assert "Core AI (coreai-core 1.0.0b3)" in verification.executed_by
    assert any("beta" in note for note in verification.notes)
    assert {name: found.scheme for name, found in artifact.read_back().items()} == plan
    x = draw(7, 64, seed=5)  # more rows than the package takes at once
    with torch.no_grad():
        expected = quantized.module(x)
    torch.testing.assert_close(artifact.run(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scheme", KINDS)
def test_every_kind_of_scheme_alone(scheme: str, make_quantized: Quantizer, tmp_path: Path) -> None:
    quantized = make_quantized(seeded(nn.Linear(64, 16)), (draw(2, 64),), scheme)
    (layer,) = quantized.assignment
    assert quantized.assignment[layer].scheme == scheme
    artifact = TARGET.emit(quantized, tmp_path)
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    assert verification.layers_matched == 1
    assert artifact.read_back()[layer].scheme == scheme


@pytest.mark.parametrize(
    ("model", "inputs", "scheme"),
    [
        (Mixed, draw(4, 3, 16, 16), "w8a8"),
        (Recurrent, draw(4, 5, 8), "w8"),
    ],
)
def test_real_operators(
    model: type[torch.nn.Module],
    inputs: torch.Tensor,
    scheme: str,
    make_quantized: Quantizer,
    tmp_path: Path,
) -> None:
    quantized = make_quantized(seeded(model()), (inputs,), scheme, batch=2)
    assert scheme in {choice.scheme for choice in quantized.assignment.values()}
    verification = TARGET.emit(quantized, tmp_path).verify()
    assert verification.ok, verification.mismatches
    assert verification.layers_matched == len(quantized.assignment)


@pytest.mark.parametrize(("name", "scheme"), [("gpt2", "w4"), ("resnet", "w8a8")])
def test_architectures(name: str, scheme: str, make_quantized: Quantizer, tmp_path: Path) -> None:
    entry = architecture(name)
    model, inputs = entry.build(), entry.inputs(2)
    quantized = make_quantized(model, (), scheme, kwargs=inputs)
    artifact = TARGET.emit(quantized, tmp_path)
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    assert verification.layers_matched == len(quantized.assignment)
    assert "all" in artifact.debug()


def test_an_embedding_is_read_back(make_quantized: Quantizer, tmp_path: Path) -> None:
    ids = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    plan = {"embedding": "lut4", "up": "w2-g32", "down": "w4"}
    quantized = make_quantized(seeded(SequenceNet()), (ids,), plan)
    artifact = TARGET.emit(quantized, tmp_path)
    assert artifact.verify().ok
    assert {name: found.scheme for name, found in artifact.read_back().items()} == plan


def test_zero_points_survive(make_quantized: Quantizer, tmp_path: Path) -> None:
    quantized = _with_zero_points(make_quantized(seeded(Chain(1)), (draw(2, 64),), "w4"))
    artifact = TARGET.emit(quantized, tmp_path)
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    assert verification.layers_matched == 2


def _with_zero_points(made: QuantizedGraph) -> QuantizedGraph:
    """The same plan with a zero point of its own for every output, which no algorithm makes yet."""
    module, tables = clone(made.module), dict(made.weights)
    for node in module.graph.find_nodes(op="call_function", target=DEQUANTIZE_AFFINE):
        values, scale, _, *rest = node.args
        name = str(values.target).removesuffix("_values")
        points = torch.arange(made.weights[name].values.shape[0], dtype=torch.int8) % 7 - 3
        tables[name] = replace(tables[name], zero_point=points)
        stored = insert_constant(module, node, f"{name}_zero_point", points)
        node.args = (values, scale, stored, *rest)
    return replace(made, module=finish(module), weights=tables)


def test_the_same_plan_gives_the_same_bytes(make_quantized: Quantizer, tmp_path: Path) -> None:
    quantized = make_quantized(seeded(Attention()), (draw(2, 6, 32),), "w8")
    files: list[bytes] = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        TARGET.emit(quantized, folder)
        files.append((folder / "model.aimodel" / "main.mlirb").read_bytes())
    assert files[0] == files[1]
    assert str(Path(__file__).parent).encode() not in files[0]  # nor where the source lies


@pytest.mark.parametrize(("scheme", "bits"), [("lut3", 3)])
def test_a_package_is_as_large_as_its_formats(
    scheme: str, bits: int, make_quantized: Quantizer, tmp_path: Path
) -> None:
    model = seeded(nn.Linear(512, 512, bias=False))
    TARGET.emit(make_quantized(model, (draw(2, 512),), scheme), tmp_path)
    size = (tmp_path / "model.aimodel" / "main.mlirb").stat().st_size
    assert size == pytest.approx(512 * 512 * bits / 8, rel=0.06)
