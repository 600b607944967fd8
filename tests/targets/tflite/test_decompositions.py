"""Operators that litert-torch lacks, against torch's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advisor.passes.fx import attribute
from advisor.passes.graph import QuantizedGraph
from advisor.passes.recurrent import GRU, LSTM
from advisor.targets.tflite import TARGET
from advisor.targets.tflite.decompositions import DECOMPOSITIONS
from advisor.targets.tflite.flatbuffer import FlatModel
from tests.targets.tflite.models import seeded

Quantizer = Callable[..., QuantizedGraph]


def normal(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_recurrent_steps_are_the_operators(reverse: bool, given: bool) -> None:
    """With states and biases, and without."""
    x = normal(7, 2, 5)
    for operator, gates in ((LSTM, 4), (GRU, 3)):
        weights = [normal(3 * gates, 5) / 2, normal(3 * gates, 3) / 2]
        biases = [normal(3 * gates), normal(3 * gates) / 3] if given else [None, None]
        states = [normal(1, 2, 3) if given else None] * (2 if operator is LSTM else 1)
        for more in ((False,), (True,)) if operator is LSTM else ((),):
            arguments = (x, *states, *weights, *biases, reverse, *more)
            found = DECOMPOSITIONS[operator](*arguments)
            torch.testing.assert_close(found, operator(*arguments), rtol=0, atol=1e-6)


@pytest.mark.parametrize("lead", [(4,), (2, 3)])
def test_bilinear_is_a_product_per_output(lead: tuple[int, ...]) -> None:
    left, right, weight = normal(*lead, 5), normal(*lead, 6), normal(7, 5, 6)
    bilinear = DECOMPOSITIONS[torch.ops.aten.bilinear.default]
    for bias in (None, normal(7)):
        wanted = F.bilinear(left, right, weight, bias)
        torch.testing.assert_close(bilinear(left, right, weight, bias), wanted)


@pytest.mark.parametrize("kernel", [3, 4])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name_is_in_numbers(kernel: int, padding: str) -> None:
    x, weight, bias = normal(2, 4, 20), normal(6, 2, kernel), normal(6)
    convolve = DECOMPOSITIONS[torch.ops.aten.conv1d.padding]
    found = convolve(x, weight, bias, [1], padding, [2], 2)
    torch.testing.assert_close(found, F.conv1d(x, weight, bias, 1, padding, 2, 2))


class Constants(nn.Module):
    """What a converter would compute ahead or store once: an added table, equal weights."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, 9, 8))
        self.one, self.two = nn.Parameter(torch.zeros(8, 8)), nn.Parameter(torch.zeros(8, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.table[:, :6]
        x = torch.tanh(x * self.one[:6]) * self.two[:6]
        logits: Tensor = self.head(x[:, None, :1])  # rows of one, four dimensions
        return logits


@pytest.mark.slow
def test_nothing_is_computed_ahead_from_weights(make_quantized: Quantizer, tmp_path: Path) -> None:
    """Weights without a quantized form are in the file as they are in the graph."""
    model = seeded(Constants())
    with torch.no_grad():
        model.get_parameter("two").copy_(model.get_parameter("one"))
    schemes = {"head": "w8a8-dynamic"}
    graph = make_quantized(model, (normal(4, 6, 8),), schemes, batch=1)
    artifact = TARGET.emit(graph, tmp_path)
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    assert verification.layers_matched == verification.layers_total == 4
    file = FlatModel((tmp_path / "model.tflite").read_bytes())
    held = {file.name(i): file.data(i) for i in range(len(file.graph.tensors))}
    source = graph.float_graph
    frozen = [layer.weight for layer in source.layers if layer.frozen]
    assert len(set(frozen)) == 3
    for name in frozen:
        assert held[name] == attribute(source.module, name).detach().numpy().tobytes()
