"""Recurrent networks: taken apart without a change, quantized by the textbook, scored exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advisor.formats import scheme_named
from advisor.passes.apply import dequantize
from advisor.passes.candidates import regions_of
from advisor.passes.capture import capture
from advisor.passes.graph import Graph, LayerAssignment
from advisor.passes.group import group_layers
from advisor.passes.quantize import quantize, round_weights
from advisor.passes.recurrent import GRU, LSTM, LSTM_DYNAMIC, run_in_batches
from advisor.passes.rounding import round_weight
from advisor.passes.rounding.store import RoundedWeights
from advisor.passes.sensitivity import Question, probe
from advisor.passes.spool import Spool
from advisor.targets.capability import DynamicRules, load_capability
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
        begin: Any = first if len(first) > 1 else next(iter(first), None)
        y, last = self.net(x, begin)
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


def rounded_state(state: Tensor) -> Tensor:
    """The formula of ONNX DynamicQuantizeLinear and back."""
    low, high = min(float(state.min()), 0.0), max(float(state.max()), 0.0)
    scale = torch.tensor((high - low) / 255 if high > low else 1.0)
    zero = torch.round(-torch.tensor(low) / scale)
    return (torch.clamp(torch.round(state / scale) + zero, 0, 255) - zero) * scale


def step_by_step(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """torch.nn.LSTMCell with a rounded hidden state."""
    cell = nn.LSTMCell(5, 6)
    names = {f"{name}_l0": name for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    cell.load_state_dict({names[name]: value for name, value in net.state_dict().items()})
    h, c = torch.zeros(x.shape[1], 6), torch.zeros(x.shape[1], 6)
    steps: list[Tensor] = []
    for step in x:
        h, c = cell(step, (rounded_state(h), c))
        steps.append(h)
    return torch.stack(steps), c


@pytest.mark.parametrize("reverse", [False, True])
def test_a_dynamic_lstm_rounds_its_state_at_every_step(reverse: bool) -> None:
    net, x = seeded(nn.LSTM(5, 6)), torch.randn(7, 3, 5)
    with torch.no_grad():
        found = LSTM_DYNAMIC(x, None, None, *net.parameters(), reverse, True)
        wanted, cell = step_by_step(net, x.flip(0) if reverse else x)
        floats = net(x.flip(0) if reverse else x)[0]
    wanted = wanted.flip(0) if reverse else wanted
    assert torch.allclose(found[:-1], wanted, atol=1e-6)
    assert torch.allclose(found[-1], cell, atol=1e-6)
    assert not torch.allclose(wanted.flip(0) if reverse else wanted, floats, atol=1e-4)


def test_a_dynamic_lstm_in_batches_is_each_batch_alone() -> None:
    net, x, state = seeded(nn.LSTM(5, 6)), torch.randn(4, 7, 5), torch.randn(1, 7, 6)
    weights = [*net.parameters(), False, False]
    found = run_in_batches((x, state, state, *weights), 7, 3)
    for start, stop in ((0, 3), (3, 6), (6, 7)):
        part = state[:, start:stop]
        alone = LSTM_DYNAMIC(x[:, start:stop], part, part, *weights)
        assert torch.equal(found[:, start:stop], alone)
    assert not torch.equal(found, LSTM_DYNAMIC(x, state, state, *weights))


RULES = DynamicRules(dtype="uint8", symmetric=False, granularity="per-tensor")


def test_a_dynamic_layer_quantizes_input_and_state() -> None:
    model, x = seeded(Network("LSTM", states=False)), torch.randn(3, 4, 5)
    graph = capture(model, (x,), {})
    assignment = all_in(graph, "w8a8-dynamic")
    quantized = quantize(
        graph,
        assignment,
        weights=round_weights(graph, assignment),
        params={},
        regions=regions_of(graph, ORT),
        rules=ORT.static,
        dynamic={"w8a8-dynamic": RULES},
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(restored(parameter, "w8"))
        wanted, _ = step_by_step(model.net, rounded_state(x.transpose(0, 1)))
        found = quantized.module(x)
    assert torch.allclose(found.transpose(0, 1), wanted, atol=1e-5)


def test_errors_of_a_dynamic_input_and_state_are_predicted(tmp_path: Path) -> None:
    model, x = seeded(Network("LSTM", states=False)), torch.randn(96, 6, 5)
    graph = capture(model, (x[:2],), {})
    data = Spool(tmp_path / "data")
    data.append((x,), batch=96)
    sensitivity = probe(
        graph,
        data,
        Question(
            weights=[],
            dynamic=[(layer, RULES) for layer in graph.layers],
            batch=32,
            sites=(),
            params={},
        ),
        rounded=RoundedWeights(graph),
        kinds=("regression",),
        powers=(1.0,),
        probes=32,
        max_samples=96,
    )
    inputs, states = [], []
    with torch.no_grad():
        for part in torch.split(x, 32):
            y, rows = model(part), part.transpose(0, 1)
            inputs.append((model(rounded_state(part)) - y).square().mean())
            states.append((step_by_step(model.net, rows)[0].transpose(0, 1) - y).square().mean())
    for layer, measured in zip(graph.layers, (inputs, states), strict=True):
        predicted = sensitivity.divergence(("dynamic", layer.name, RULES.label))
        assert predicted == pytest.approx(float(torch.stack(measured).mean()), rel=0.15)
