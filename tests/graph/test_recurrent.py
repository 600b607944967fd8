"""Recurrent networks: taken apart without a change, quantized by the textbook, scored exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advisor.formats import scheme_named
from advisor.passes.apply import dequantize
from advisor.passes.capture import capture
from advisor.passes.graph import Graph, LayerAssignment
from advisor.passes.group import group_layers
from advisor.passes.quantize import quantize, round_weights
from advisor.passes.recurrent import GRU, LSTM
from advisor.passes.rounding import round_weight
from advisor.passes.rounding.store import RoundedWeights
from advisor.passes.sensitivity import Question, probe
from advisor.passes.spool import Spool
from advisor.setting import regions_of
from advisor.targets.capability import load_capability
from tests.graph.models import seeded

ORT = load_capability("onnxruntime")


class Network(nn.Module):
    """An LSTM or GRU that starts where the caller says; gives back its states where asked."""

    def __init__(self, kind: str, *, states: bool = True, **options: Any) -> None:
        super().__init__()
        self.net: Any = getattr(nn, kind)(5, 6, batch_first=True, **options)
        self.states = states

    def forward(self, x: Tensor, *start: Tensor) -> Any:
        first = tuple(state.transpose(0, 1) for state in start)
        y, last = self.net(x, (first if len(first) > 1 else first[0]) if first else None)
        if not self.states:
            return y
        last = last if isinstance(last, tuple) else (last,)
        return (y, *(state.transpose(0, 1) for state in last))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"num_layers": 2},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
]


def start_of(kind: str, options: dict[str, Any], batch: int) -> tuple[Tensor, ...]:
    depth = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    return tuple(torch.randn(batch, depth, 6) for _ in range(2 if kind == "LSTM" else 1))


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_networks_are_taken_apart_without_a_change(
    kind: str, options: dict[str, Any], starts: bool
) -> None:
    model = seeded(Network(kind, **options))
    start = start_of(kind, options, 2) if starts else ()
    graph = capture(model, (torch.randn(2, 4, 5), *start), {})
    assert graph.batch is None
    larger = (torch.randn(7, 4, 5), *(start_of(kind, options, 7) if starts else ()))
    with torch.no_grad():
        wanted, found = model(*larger), graph.module(*larger)
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))
    trained = [name for name, value in model.named_parameters() if value.ndim == 2]
    assert [layer.name for layer in graph.layers] == trained
    assert all(layer.frozen is None for layer in graph.layers)


def test_a_cell_state_that_nobody_reads_is_not_made() -> None:
    graph = capture(seeded(Network("LSTM", states=False)), (torch.randn(2, 4, 5),), {})
    (call,) = (node for node in graph.module.graph.nodes if node.target is LSTM)
    assert tuple(call.meta["val"].shape[1:]) == (call.meta["val"].shape[1], 6)
    assert call.args[1:3] == (None, None)
    assert call.args[-1] is False


def test_a_network_called_twice_has_one_set_of_weights() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.GRU(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.net(self.net(x)[0])[0]
            return result

    graph = capture(seeded(Twice()), (torch.randn(3, 2, 5),), {})
    names = ["net.weight_ih_l0", "net.weight_hh_l0"]
    assert [layer.name for layer in graph.layers] == [*names, *(f"{name}#2" for name in names)]
    (group,) = group_layers(graph, ORT)
    assert set(group.layers) == {layer.name for layer in graph.layers}


def test_both_weights_of_one_operator_decide_together() -> None:
    graph = capture(seeded(Network("LSTM", num_layers=2)), (torch.randn(2, 4, 5),), {})
    assert [group.layers for group in group_layers(graph, ORT)] == [
        (f"net.weight_ih_l{index}", f"net.weight_hh_l{index}") for index in range(2)
    ]


def test_projections_stay_whole_and_say_why() -> None:
    model = seeded(Network("LSTM", proj_size=3))
    graph = capture(model, (torch.randn(2, 4, 5),), {})
    assert all("lstm has no quantized form" in str(layer.frozen) for layer in graph.layers)
    x = torch.randn(2, 4, 5)
    with torch.no_grad():
        assert torch.allclose(graph.module(x)[0], model(x)[0], atol=1e-6)


@pytest.mark.parametrize("with_cell", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_of_an_lstm_are_torchs_own(reverse: bool, with_cell: bool) -> None:
    net, x = seeded(nn.LSTM(5, 6)), torch.randn(4, 3, 5, requires_grad=True)
    inputs = [x, *net.parameters()]
    y, (_, cell) = net(x.flip(0) if reverse else x)
    y = y.flip(0) if reverse else y
    wanted = torch.autograd.grad(
        y.square().sum() + (cell.square().sum() if with_cell else 0), inputs
    )
    own = LSTM(x, None, None, *inputs[1:], reverse, with_cell)
    found = torch.autograd.grad(own.square().sum(), inputs)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True))


def test_gradients_reach_the_initial_state_of_a_gru() -> None:
    net, x, h0 = seeded(nn.GRU(5, 6)), torch.randn(4, 3, 5), torch.randn(1, 3, 6)
    h0.requires_grad_()
    (wanted,) = torch.autograd.grad(net(x, h0)[0].square().sum(), [h0])
    (found,) = torch.autograd.grad(GRU(x, h0, *net.parameters(), False).square().sum(), [h0])
    assert torch.allclose(found, wanted, atol=1e-6)


def all_in(graph: Graph, scheme: str) -> dict[str, LayerAssignment]:
    return {layer.name: LayerAssignment(scheme=scheme, algorithm="rtn") for layer in graph.layers}


def restored(weight: Tensor, scheme: str) -> Tensor:
    fmt = scheme_named(scheme).weight
    return dequantize(round_weight(weight, fmt, "rtn"), fmt, tuple(weight.shape))


@pytest.mark.parametrize("scheme", ["fp16", "w8", "w4-g32"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_weight_only_schemes_are_the_network_with_rounded_weights(kind: str, scheme: str) -> None:
    model, x = seeded(Network(kind, bidirectional=True)), torch.randn(3, 4, 5)
    graph = capture(model, (x,), {})
    assignment = all_in(graph, scheme)
    quantized = quantize(
        graph,
        assignment,
        weights=round_weights(graph, assignment),
        params={},
        regions=regions_of(graph, ORT),
        rules=ORT.static,
    )
    with torch.no_grad():
        found, before = quantized.module(x), model(x)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(restored(parameter, scheme))
        wanted = model(x)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True))
    assert not torch.allclose(found[0], before[0], atol=1e-6)


def test_small_changes_of_either_weight_are_predicted(tmp_path: Path) -> None:
    model, x = seeded(Network("LSTM", states=False)), torch.randn(96, 6, 5)
    graph = capture(model, (x[:2],), {})
    data = Spool(tmp_path / "data")
    data.append((x,), batch=96)
    sensitivity = probe(
        graph,
        data,
        Question(weights=[(layer, "w8", "rtn") for layer in graph.layers], sites=(), params={}),
        rounded=RoundedWeights(graph),
        kinds=("regression",),
        powers=(1.0,),
        probes=32,
        max_samples=96,
    )
    with torch.no_grad():
        reference = model(x)
        for layer in graph.layers:
            weight = model.get_parameter(layer.weight)
            kept = weight.clone()
            weight.copy_(restored(weight, "w8"))
            measured = float((model(x) - reference).square().mean())
            weight.copy_(kept)
            predicted = sensitivity.divergence(("weight", layer.name, "w8/rtn"))
            assert measured > 0
            assert predicted == pytest.approx(measured, rel=0.15)
