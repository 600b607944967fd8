"""``storage_bits`` against the files of a written package."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from advisor.formats import scheme_named, storage_bits
from advisor.targets.capability import load_capability
from advisor.targets.coreml import TARGET
from advisor.targets.coreml.artifact import CoremlArtifact
from tests.targets.making import Quantizer
from tests.targets.models import draw, seeded

CAPABILITY = load_capability("coreml")
SCHEMES = tuple(CAPABILITY.schemes)
WIDTH = 1024


class Layers(nn.Module):
    """(B, WIDTH) to (B, WIDTH) through a Linear of every scheme, none of them with a bias."""

    def __init__(self) -> None:
        super().__init__()
        linears = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in SCHEMES]
        self.layers = nn.Sequential(*linears)

    def forward(self, x: Any) -> Any:
        return self.layers(x)


@pytest.fixture(scope="module")
def package(make_quantized: Quantizer, tmp_path_factory: pytest.TempPathFactory) -> CoremlArtifact:
    folder = tmp_path_factory.mktemp("storage")
    layers = {f"layers.{index}": scheme for index, scheme in enumerate(SCHEMES)}
    graph = make_quantized(seeded(Layers()), (draw(1, WIDTH),), layers)
    assert {name: each.scheme for name, each in graph.assignment.items()} == layers
    return TARGET.emit(graph, folder)


def expected_bytes(scheme: str) -> int:
    found = scheme_named(scheme)
    scales = CAPABILITY.scale_dtype_of(found)
    return storage_bits((WIDTH, WIDTH), found.weight, scale_dtype=scales) // 8


def stored_bytes(artifact: CoremlArtifact, layer: str) -> int:
    """What the layer's weight takes of weight.bin: integers, scales and tables with the header of
    each, found by following the layer's own operator back in the specification."""
    import coremltools

    path = artifact.path / "model.mlpackage"
    spec = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    makers = {out.name: op for op in block.operations for out in op.outputs}
    (weights,) = path.rglob("weight.bin")
    content = weights.read_bytes()

    def blobs(op: Any) -> Iterator[int]:
        values = [*op.attributes.values()]
        for argument in op.inputs.values():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "name" and binding.name in makers:
                    yield from blobs(makers[binding.name])
                else:
                    values.append(binding.value)
        yield from (v.blobFileValue.offset for v in values if v.HasField("blobFileValue"))

    name = artifact.package.names.layers[layer]
    (op,) = [
        op
        for op in block.operations
        if op.type == "linear" and f"{op.outputs[0].name}_".startswith(f"{name}_")
    ]
    (source,) = op.inputs["weight"].arguments
    total = 0
    for offset in set(blobs(makers[source.name])):
        # The format's header of 64 bytes: a mark, a dtype, the size and where the numbers begin.
        mark, _, size, _ = struct.unpack_from("<IIQQ", content, offset)
        assert mark == 0xDEADBEEF
        total += 64 + -(-size // 64) * 64
    return total


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_bytes_of_a_weight(scheme: str, package: CoremlArtifact) -> None:
    found = stored_bytes(package, f"layers.{SCHEMES.index(scheme)}")
    assert found == pytest.approx(expected_bytes(scheme), rel=0.005)


@pytest.mark.slow
def test_bytes_of_the_whole_package(package: CoremlArtifact) -> None:
    expected = sum(map(expected_bytes, SCHEMES))
    (weights,) = package.path.rglob("weight.bin")
    assert weights.stat().st_size == pytest.approx(expected, rel=0.005)
    files = [path for path in (package.path / "model.mlpackage").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) == pytest.approx(expected, rel=0.005)


def test_bytes_of_two_schemes(make_quantized: Quantizer, tmp_path: Path) -> None:
    """The file alone, as a user weighs it."""
    schemes = {"0": "w4-g32", "1": "w8"}
    shapes = [(WIDTH, WIDTH), (WIDTH, WIDTH)]
    model = nn.Sequential(*(nn.Linear(i, o, bias=False) for o, i in shapes))
    TARGET.emit(make_quantized(seeded(model), (draw(1, WIDTH),), schemes), tmp_path)
    (weights,) = tmp_path.rglob("weight.bin")
    expected = sum(map(expected_bytes, schemes.values()))
    assert weights.stat().st_size == pytest.approx(expected, rel=0.005)
