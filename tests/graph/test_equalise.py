"""Equalised graphs: equal outputs, the published fixed point, and what it buys in integers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advisor.errors import PlanError
from advisor.formats import scheme_named
from advisor.passes.calibrate import observe_channels
from advisor.passes.capture import capture
from advisor.passes.equalise import LARGEST, equalise, find_chains, find_factors
from advisor.passes.fx import attribute
from advisor.passes.graph import Graph
from advisor.passes.rounding.store import RoundedWeights
from advisor.passes.spool import Spool
from advisor.passes.verify import verify
from advisor.search.problem import Knob
from tests.graph.small import images, make_setting, make_workbench

IMAGE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
SIGNAL = torch.randn(4, 3, 10, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Layers ``a``, ``b``, ... and a function that calls them."""

    def __init__(self, call: Callable[..., Tensor | tuple[Tensor, Tensor]], **layers: nn.Module):
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.call = call

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.call(x, *self.layers.values())


def graph_of(model: nn.Module, x: Tensor) -> Graph:
    return capture(model.eval(), (x,), {})


def conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Conv2d:
    torch.manual_seed(inputs + 7 * outputs)
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def linear(inputs: int, outputs: int, **options: bool) -> nn.Linear:
    torch.manual_seed(inputs + 7 * outputs)
    return nn.Linear(inputs, outputs, **options)


CHAINS: dict[str, tuple[nn.Module, Tensor, int]] = {
    "depthwise": (
        nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8, groups=8), nn.ReLU(), conv(8, 4, 1)),
        IMAGE,
        2,
    ),
    "depthwise multiplier": (
        nn.Sequential(conv(3, 8, bias=False), nn.ReLU(), conv(8, 16, groups=8)),
        IMAGE,
        1,
    ),
    "grouped": (nn.Sequential(conv(3, 8), conv(8, 6, groups=2), nn.ReLU(), conv(6, 4)), IMAGE, 2),
    "batch norm": (
        nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, groups=8)),
        IMAGE,
        1,
    ),
    "same padding": (
        nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.ReLU(), conv(8, 4)),
        IMAGE,
        1,
    ),
    "pools": (
        nn.Sequential(conv(3, 8), nn.MaxPool2d(2), nn.ReLU(), nn.AvgPool2d(2), conv(8, 4)),
        IMAGE,
        1,
    ),
    "flatten": (
        nn.Sequential(conv(3, 8), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), linear(32, 5)),
        IMAGE,
        1,
    ),
    "global pool": (
        nn.Sequential(
            conv(3, 8), nn.LeakyReLU(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(8, 5)
        ),
        IMAGE,
        1,
    ),
    "mean": (
        Net(lambda x, a, b: b(a(x).relu().mean((2, 3))), a=conv(3, 8), b=linear(8, 5)),
        IMAGE,
        1,
    ),
    "mean keeps": (
        Net(lambda x, a, b: b(a(x).mean((-1, -2), keepdim=True)), a=conv(3, 8), b=conv(8, 5, 1)),
        IMAGE,
        1,
    ),
    "clamp": (
        Net(lambda x, a, b: b(a(x).clamp(min=0)), a=linear(6, 9, bias=False), b=linear(9, 3)),
        ROWS,
        1,
    ),
    "perceptron": (
        nn.Sequential(linear(6, 9), nn.ReLU(), linear(9, 7), nn.ReLU(), linear(7, 3)),
        ROWS,
        2,
    ),
    "signal": (
        nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 3, groups=8)),
        SIGNAL,
        1,
    ),
}

TIED = linear(6, 6)
NO_CHAINS: dict[str, tuple[nn.Module, Tensor]] = {
    "relu6": (nn.Sequential(conv(3, 8), nn.ReLU6(), conv(8, 4)), IMAGE),
    "gelu": (nn.Sequential(linear(6, 9), nn.GELU(), linear(9, 3)), ROWS),
    "clamp above": (Net(lambda x, a, b: b(a(x).clamp(0, 1)), a=linear(6, 9), b=linear(9, 3)), ROWS),
    "clamp at one": (
        Net(lambda x, a, b: b(a(x).clamp(min=1)), a=linear(6, 9), b=linear(9, 3)),
        ROWS,
    ),
    "residual": (
        Net(lambda x, a, b: (y := a(x).relu()) + b(y), a=conv(3, 8), b=conv(8, 8)),
        IMAGE,
    ),
    "sum": (Net(lambda x, a, b: b(a(x) + 1), a=linear(6, 9), b=linear(9, 3)), ROWS),
    "output": (
        Net(lambda x, a, b: ((y := a(x).relu()), b(y)), a=linear(6, 9), b=linear(9, 3)),
        ROWS,
    ),
    "tied": (nn.Sequential(TIED, nn.ReLU(), TIED), ROWS),
    "read elsewhere": (
        Net(
            lambda x, a, b: b(a(x)) + (a.weight * x[:, None, :]).sum(-1),
            a=linear(6, 9),
            b=linear(9, 9),
        ),
        ROWS,
    ),
    "read as a weight": (
        Net(lambda x, a, b: b(F.linear(x, a(x).relu())), a=linear(6, 6), b=linear(5, 3)),
        ROWS,
    ),
    "other dimension": (Net(lambda x, a, b: b(a(x)), a=conv(3, 8), b=linear(8, 5)), IMAGE),
    "mean of channels": (
        Net(lambda x, a, b: b(a(x).mean((1, 2))), a=conv(3, 8), b=linear(8, 5)),
        IMAGE,
    ),
    "mean of rows": (Net(lambda x, a, b: b(a(x).mean(2)), a=conv(3, 8), b=linear(8, 5)), IMAGE),
    "transposed": (
        Net(lambda x, a, b: b(a(x).transpose(1, 2)), a=conv(3, 8), b=conv(8, 5, 1)),
        IMAGE,
    ),
    "pool over features": (
        Net(lambda x, a, b: b(F.max_pool1d(a(x), 3)), a=linear(6, 9), b=linear(3, 2)),
        ROWS,
    ),
    "one layer": (linear(6, 9), ROWS),
}


def random_factors(graph: Graph, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        chain.first.name: torch.randn(chain.first.weight_shape[0], generator=generator).exp()
        for chain in find_chains(graph)
    }


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("name", CHAINS)
def test_outputs_stay_equal(name: str) -> None:
    model, x, count = CHAINS[name]
    graph = graph_of(model, x)
    factors = random_factors(graph)
    assert len(factors) == count
    before = {key: value.clone() for key, value in graph.module.state_dict().items()}
    equal = equalise(graph, factors)
    verify(equal)
    with torch.no_grad():
        wanted = graph.module(x)
        assert relative_error(equal.module(x), wanted) < 1e-5
    for chain in find_chains(graph):
        old, new = (attribute(g.module, chain.first.weight) for g in (graph, equal))
        assert relative_error(new, old) > 0.01
    after = graph.module.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert [layer.name for layer in equal.layers] == [layer.name for layer in graph.layers]


@pytest.mark.parametrize("name", NO_CHAINS)
def test_what_cannot_be_rescaled_is_left_alone(name: str) -> None:
    assert find_chains(graph_of(*NO_CHAINS[name])) == ()


def test_factors_of_a_layer_that_begins_no_chain_are_refused() -> None:
    graph = graph_of(*NO_CHAINS["relu6"])
    with pytest.raises(PlanError, match="channels of 0 cannot be rescaled"):
        equalise(graph, {"0": torch.ones(8)})


def observed(graph: Graph, x: Tensor, folder: Path) -> dict[str, Tensor]:
    spool = Spool(folder)
    spool.append([x], batch=len(x))
    seen = observe_channels(graph, spool, [chain.second for chain in find_chains(graph)])
    return {name: stats.largest for name, stats in seen.items()}


def centred(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(values / np.exp(np.log(values).mean()))


def test_factors_are_the_formula(tmp_path: Path) -> None:
    first, second = linear(6, 9), linear(9, 3)
    graph = graph_of(nn.Sequential(first, nn.ReLU(), second), ROWS)
    factors = find_factors(graph, find_chains(graph), observed(graph, ROWS, tmp_path))
    seen = F.relu(first(ROWS)).detach().numpy().max(axis=0)
    column = np.abs(second.weight.detach().numpy()).max(axis=0)
    alive = seen > 0
    wanted = centred(np.sqrt(seen[alive] / column[alive]))
    assert np.allclose(factors["0"].numpy()[alive], wanted, rtol=1e-5)
    assert bool((factors["0"][torch.from_numpy(~alive)] == 1).all())


def test_flattened_positions_share_their_channels_factor(tmp_path: Path) -> None:
    model, x, _ = CHAINS["flatten"]
    graph = graph_of(model, x)
    factors = find_factors(graph, find_chains(graph), observed(graph, x, tmp_path))
    assert isinstance(model, nn.Sequential)
    hidden: Tensor = model[:4](x)
    seen = hidden.detach().abs().amax(0).reshape(8, 4).amax(1).numpy()
    column = attribute(model, "4.weight").detach().abs().amax(0).reshape(8, 4).amax(1).numpy()
    assert np.allclose(factors["0"].numpy(), centred(np.sqrt(seen / column)), rtol=1e-5)


def test_chains_that_share_a_layer_settle(tmp_path: Path) -> None:
    """At the fixed point every tensor is as uneven as the columns that read it."""
    graph = graph_of(*CHAINS["depthwise"][:2])
    chains = find_chains(graph)
    factors = find_factors(graph, chains, observed(graph, IMAGE, tmp_path / "a"))
    equal = equalise(graph, factors)
    again = find_factors(equal, find_chains(equal), observed(equal, IMAGE, tmp_path / "b"))
    for name, factor in again.items():
        assert torch.allclose(factor, torch.ones_like(factor), rtol=1e-3), name


def test_dead_channels_do_no_harm(tmp_path: Path) -> None:
    first, second = conv(3, 8), conv(8, 4)
    assert first.bias is not None
    with torch.no_grad():
        first.weight[0] = 0
        first.bias[:2] = torch.tensor([0.0, -1e9])
        second.weight[:, 2] = 0
        first.weight[3] *= 1e-30
        first.bias[3] *= 1e-30
    graph = graph_of(nn.Sequential(first, nn.ReLU(), second), IMAGE)
    factors = find_factors(graph, find_chains(graph), observed(graph, IMAGE, tmp_path))
    assert factors["0"][:3].tolist() == [1, 1, 1]
    assert float(factors["0"].min()) == pytest.approx(1 / LARGEST)
    with torch.no_grad():
        found, wanted = equalise(graph, factors).module(IMAGE), graph.module(IMAGE)
    assert relative_error(found, wanted) < 1e-5


def test_a_tensor_without_any_life_keeps_its_scale(tmp_path: Path) -> None:
    first, second = linear(6, 9), linear(9, 3)
    nn.init.zeros_(first.weight)
    nn.init.zeros_(first.bias)
    graph = graph_of(nn.Sequential(first, nn.ReLU(), second), ROWS)
    factors = find_factors(graph, find_chains(graph), observed(graph, ROWS, tmp_path))
    assert torch.equal(factors["0"], torch.ones(9))


class Separable(nn.Module):
    """Expand, filter every channel, project, classify: 8x8 images to five logits."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.filter = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, groups=16)
        self.project, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.filter(F.relu(self.expand(x))))
        logits: Tensor = self.head(F.max_pool2d(self.project(x), 2).flatten(1))
        return logits


def badly_scaled() -> Separable:
    """Every third channel 50 times larger in the tensors around the depthwise convolution."""
    torch.manual_seed(0)
    model = Separable().eval()
    factor = torch.where(torch.arange(16) % 3 == 0, 50.0, 1.0)
    with torch.no_grad():
        for first, second in ((model.expand, model.filter), (model.filter, model.project)):
            first.weight.mul_(factor.reshape(-1, 1, 1, 1))
            assert first.bias is not None
            first.bias.mul_(factor)
            shape = (-1, 1, 1, 1) if second.groups > 1 else (1, -1, 1, 1)
            second.weight.div_(factor.reshape(shape))
    return model


@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_a_badly_scaled_depthwise_network(observer: str, tmp_path: Path) -> None:
    inputs = images(128)[0]
    setting = make_setting(badly_scaled(), inputs[:2], schemes=["w8a8"])
    bench = make_workbench(setting, inputs, tmp_path)
    choice = tuple(
        next(i for i, option in enumerate(options) if option.scheme == "w8a8")
        for options in (setting.space.candidates[group.name] for group in setting.groups)
    )
    knobs: dict[str, Knob] = {"observer": observer, "bias_correction": False}
    plain = bench.simulator.measure(choice, knobs)
    equal = bench.simulator.measure(choice, {**knobs, "equalise": True})
    assert equal < plain / 20
    assert bench.simulator.measure(choice, knobs) == plain
    assert bench.simulator.measure(choice, {**knobs, "equalise": True}) == equal
    assert bench.simulator.equalised is not None
    assert bench.simulator.basis({}).graph is setting.graph


def test_weights_outside_chains_are_rounded_once() -> None:
    model = Net(
        lambda x, a, b, c: c(b(a(x)).tanh()), a=linear(6, 9), b=linear(9, 8), c=linear(8, 3)
    )
    graph = graph_of(model, ROWS)
    base = RoundedWeights(graph)
    equal = equalise(graph, random_factors(graph))
    store = RoundedWeights(equal, base=base)
    weight, algorithm = scheme_named("w8").weight, "rtn"
    same, changed = "layers.c.weight", "layers.a.weight"
    assert store.get(same, weight, algorithm) is base.get(same, weight, algorithm)
    assert store.get(changed, weight, algorithm) is not base.get(changed, weight, algorithm)
