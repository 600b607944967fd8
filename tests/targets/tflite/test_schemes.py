"""Every scheme in every small model: read back equal, integers byte-equal, outputs in agreement."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from advisor.passes.capture import capture
from advisor.passes.graph import QuantizedGraph
from advisor.targets.tflite import TARGET
from advisor.targets.tflite.emit import MODEL_FILE
from advisor.targets.tflite.flatbuffer import FlatModel
from advisor.targets.tflite.twins import find_twins
from tests.targets.tflite.models import (
    DepthwiseNet,
    Encoder,
    ResidualNet,
    TiedNet,
    TwoInputs,
    images,
    seeded,
    tokens,
)

Quantizer = Callable[..., QuantizedGraph]

MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[torch.Tensor, ...]]]] = {
    "residual": (ResidualNet, lambda: (images(4),)),
    "depthwise": (DepthwiseNet, lambda: (images(4),)),
    "encoder": (Encoder, lambda: (tokens(4),)),
    "tied": (TiedNet, lambda: (tokens(4),)),
    "two": (TwoInputs, lambda: (images(4), images(4, seed=2))),
}

SCHEMES = (
    "fp32",
    "fp16",
    "w8",
    "w4",
    "w8a8-dynamic",
    "w4a8-dynamic",
    "w4a8-dynamic-g32",
    "w8a8",
)


ALONE = {"w8a8": "w8", "w8a8-dynamic": "w8", "w4a8-dynamic": "w4"}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_scheme_is_carried_and_computed(
    name: str, make_quantized: Quantizer, tmp_path: Path
) -> None:
    build, inputs = MODELS[name]
    model = seeded(build())
    for scheme in SCHEMES:
        graph = make_quantized(model, inputs(), scheme, batch=2)
        chosen = {choice.scheme for choice in graph.assignment.values()}
        if scheme not in chosen:
            continue
        folder = tmp_path / scheme
        folder.mkdir()
        artifact = TARGET.emit(graph, folder)
        verification = artifact.verify()
        assert verification.ok, (scheme, verification.mismatches)
        assert verification.layers_matched == verification.layers_total == len(graph.assignment)
        found = artifact.read_back()
        planned = {n: c.scheme for n, c in graph.assignment.items()}
        for layer in graph.float_graph.layers:
            if layer.op == "embedding":  # with a head's weight, but no activations
                planned[layer.name] = ALONE.get(planned[layer.name], planned[layer.name])
        block = {n: f.scheme.partition("-g")[0] for n, f in found.items()}
        assert block == {n: s.partition("-g")[0] for n, s in planned.items()}


@pytest.mark.slow
def test_static_integers_are_the_simulations(make_quantized: Quantizer, tmp_path: Path) -> None:
    """XNNPACK's accumulators against torch's floats, operator by operator."""
    graph = make_quantized(seeded(ResidualNet()), (images(8),), "w8a8", batch=1)
    verification = TARGET.emit(graph, tmp_path).verify()
    assert verification.ok
    assert verification.compared > 1000
    assert verification.flips <= verification.compared * 1e-3
    kept: dict[str, Any] = json.loads((tmp_path / "acceptance.json").read_text())
    assert kept["partitions"]["delegated"] >= 1
    assert {row["kernel"] for row in kept["layers"]} == {"XNNPACK"}


@pytest.mark.slow
def test_schemes_mix_in_one_model(make_quantized: Quantizer, tmp_path: Path) -> None:
    schemes = {
        "embed": "w8",
        "q": "w8a8-dynamic",
        "k": "w8a8",
        "v": "w4a8-dynamic",
        "o": "fp16",
        "up": "w4a8-dynamic-g32",
        "down": "w8",
    }
    graph = make_quantized(seeded(Encoder()), (tokens(4),), schemes, batch=1)
    artifact = TARGET.emit(graph, tmp_path)
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    found = {name: layer.scheme for name, layer in artifact.read_back().items()}
    assert found == schemes


def test_weight_only_layers_may_come_before_static_ones(
    make_quantized: Quantizer, tmp_path: Path
) -> None:
    """A DEQUANTIZE written for one layer must not shift where the others are looked for."""
    schemes = {"stem": "w8", "body": "w8a8", "side": "fp16", "head": "w8a8"}
    graph = make_quantized(seeded(ResidualNet()), (images(4),), schemes, batch=2)
    assert {name: choice.scheme for name, choice in graph.assignment.items()} == schemes
    assert TARGET.emit(graph, tmp_path).verify().ok


class ZeroBias(nn.Module):
    """Two linear layers whose biases are zero, which the converter leaves out of the file."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)
        for layer in (self.first, self.second):
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.second(torch.relu(self.first(x)))
        return found


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
def test_a_bias_that_is_zero_can_be_planned(
    scheme: str, make_quantized: Quantizer, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    graph = make_quantized(ZeroBias().eval(), (torch.randn(4, 8),), scheme, batch=4)
    assert TARGET.emit(graph, tmp_path).verify().ok


@pytest.mark.slow
def test_rows_are_rounded_as_xnnpack_rounds_them(make_quantized: Quantizer, tmp_path: Path) -> None:
    """Through a matrix of ones on the diagonal the runtime gives back the integers themselves."""
    size = 64
    model = nn.Linear(size, size, bias=False).eval()
    with torch.no_grad():
        model.weight.copy_(torch.eye(size))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, size, generator=generator)
    x = noise * torch.rand(4000, 1, generator=generator) + torch.randn(4000, 1, generator=generator)
    graph = make_quantized(model, (x[:8],), "w8a8-dynamic", batch=500)
    artifact = TARGET.emit(graph, tmp_path)
    span = x.amax(1, keepdim=True).clamp_min(0) - x.amin(1, keepdim=True).clamp_max(0)
    with torch.no_grad():
        expected = graph.module(x)
    steps = (artifact.run(x) - expected).abs() / (span / 255)
    assert float(steps.max()) < 0.01


class Lookup(nn.Module):
    """Token ids to a table's rows, through a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 24), nn.Linear(24, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.table(ids))
        return result


@pytest.mark.parametrize("scheme", ["w8", "w4"])
def test_rows_of_integers_are_looked_up(
    scheme: str, make_quantized: Quantizer, tmp_path: Path
) -> None:
    graph = make_quantized(
        seeded(Lookup()), (tokens(4),), {"table": scheme, "head": "fp32"}, batch=2
    )
    artifact = TARGET.emit(graph, tmp_path)
    assert artifact.verify().ok
    assert artifact.read_back()["table"].scheme == scheme
    model = FlatModel((tmp_path / MODEL_FILE).read_bytes())
    (lookup,) = [op for op in model.operators if model.code(op) == "EMBEDDING_LOOKUP"]
    assert model.dtype(int(lookup.inputs[1])) == {"w8": "INT8", "w4": "INT4"}[scheme]


class LearnedQuery(nn.Module):
    """A layer that reads a constant beside one that reads the input, as pooling heads have."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, 16))
        self.asks, self.tells = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        asked = self.asks(self.query.repeat(x.shape[0], 1, 1))
        found: torch.Tensor = self.tells(x) @ asked.transpose(1, 2)
        return found


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
def test_a_layer_may_read_a_constant(
    scheme: str, make_quantized: Quantizer, tmp_path: Path
) -> None:
    """Its integers have a scale of their own, and are written ahead."""
    torch.manual_seed(0)
    graph = make_quantized(LearnedQuery().eval(), (torch.randn(2, 5, 16),), scheme, batch=2)
    verification = TARGET.emit(graph, tmp_path).verify()
    assert verification.ok, verification.mismatches
    assert verification.layers_total == 2


class EqualNorms(nn.Module):
    """Two untrained norms of one input, each before a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)
        self.one, self.other = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.one(self.first(x)) + self.other(self.second(x))
        return found


@pytest.mark.parametrize("scheme", ["fp32", "w8", "w8a8-dynamic"])
def test_equal_values_stay_two(scheme: str, make_quantized: Quantizer, tmp_path: Path) -> None:
    """The converter makes one of them, and one value cannot be both int8 and float."""
    torch.manual_seed(0)
    schemes = {"one": "w8a8", "other": scheme}
    graph = make_quantized(EqualNorms().eval(), (torch.randn(4, 16),), schemes, batch=4)
    verification = TARGET.emit(graph, tmp_path).verify()
    assert verification.ok, verification.mismatches


def test_twins_are_equal_operators_on_equal_numbers() -> None:
    torch.manual_seed(0)
    model = EqualNorms().eval()
    module = capture(model, (torch.randn(4, 16),), {}).module
    names = [node.name for node in module.graph.nodes]
    norms = [name for name in names if name.startswith("layer_norm")]
    assert [node.name for node in find_twins(module, names)] == norms[1:]
    with torch.no_grad():
        model.second.weight[3] = 1.5
    module = capture(model, (torch.randn(4, 16),), {}).module
    assert find_twins(module, names) == []


class Steps(nn.Module):
    """(B, T, 8) to (B, T, 5): an LSTM with a linear layer on every step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.lstm(x)[0])
        return found


def test_an_lstm_goes_all_the_way_to_a_file(make_quantized: Quantizer, tmp_path: Path) -> None:
    model = seeded(Steps())
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(3))
    graph = make_quantized(model, (x,), {"head": "w8a8-dynamic"}, batch=2)
    assert graph.assignment["head"].scheme == "w8a8-dynamic"
    artifact = TARGET.emit(graph, tmp_path)
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    assert verification.layers_matched == verification.layers_total == len(graph.assignment)
    assert artifact.read_back()["head"].scheme == "w8a8-dynamic"
    file = FlatModel((tmp_path / MODEL_FILE).read_bytes())
    codes = {file.code(operator) for operator in file.operators}
    assert {"LOGISTIC", "TANH", "FULLY_CONNECTED"} <= codes  # the cells are unrolled in float
    with torch.no_grad():
        expected = model(x)
    off = (torch.as_tensor(artifact.run(x)) - expected).norm() / expected.norm()
    assert 0 < off < 0.05  # int8 weights and activations in the head alone
