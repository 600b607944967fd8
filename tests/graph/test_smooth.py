"""Smoothed graphs: equal outputs, what they cost, and what they buy in integers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advisor.errors import PlanError
from advisor.evidence import input_losses
from advisor.passes.calibrate import ChannelStats, observe_channels
from advisor.passes.capture import capture
from advisor.passes.graph import Graph, name_of
from advisor.passes.sensitivity import Sensitivity
from advisor.passes.smooth import LEVELS, expected_error, find_sites, find_smoothing, smooth
from advisor.passes.spool import Spool
from advisor.passes.verify import verify
from advisor.search.problem import Knob
from advisor.simulate import can_equalise, rescalable
from tests.graph.small import images, make_setting, make_workbench, trained_cnn

WIDTH = 16
ROWS = torch.randn(64, 6, WIDTH, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Layers, and a function that calls them."""

    def __init__(self, call: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, *self.layers.values())


def linear(inputs: int = WIDTH, outputs: int = WIDTH, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(inputs + 7 * outputs)
    return nn.Linear(inputs, outputs, bias=bias)


def norm(width: int = WIDTH) -> nn.LayerNorm:
    """With gains and offsets of its own, channel 3 an outlier."""
    torch.manual_seed(width)
    made = nn.LayerNorm(width)
    nn.init.normal_(made.weight, mean=1.0, std=0.2)
    nn.init.normal_(made.bias, std=0.2)
    with torch.no_grad():
        made.weight[3] *= 40
    return made


class RootNorm(nn.Module):
    """RMSNorm as Llama spells it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.weight = nn.Parameter(1 + torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))


MODELS: dict[str, tuple[nn.Module, dict[str, bool]]] = {
    "a norm before two layers": (
        Net(lambda x, n, a, b: a(n(x)) + b(n(x)), n=norm(), a=linear(), b=linear(bias=False)),
        {},
    ),
    "pre-norm": (
        Net(lambda x, n, a: x + a(n(x)), n=norm(), a=linear()),
        {"layers.n": True},
    ),
    "post-norm": (
        Net(lambda x, n, a: F.silu((y := n(x)) + a(y)), n=norm(), a=linear()),
        {"layers.n": False},
    ),
    "gelu": (
        Net(lambda x, a, b: b(F.gelu(a(x))), a=linear(outputs=24), b=linear(24)),
        {"gelu": False},
    ),
    "a norm without gains": (
        Net(lambda x, n, a: a(n(x)), n=nn.LayerNorm(WIDTH, elementwise_affine=False), a=linear()),
        {"layers.n": False},
    ),
    "a norm over two dimensions": (
        Net(lambda x, n, a: a(n(x)), n=nn.LayerNorm([6, WIDTH]), a=linear()),
        {"layers.n": False},
    ),
    "RMSNorm": (
        Net(lambda x, n, a: x + a(n(x)), n=RootNorm(), a=linear()),
        {"layers.n": True},
    ),
    "SwiGLU": (
        Net(
            lambda x, g, u, d: d(F.silu(g(x)) * u(x)),
            g=linear(outputs=24),
            u=linear(outputs=24, bias=False),
            d=linear(24),
        ),
        {"mul": True},
    ),
    "a gate of one column": (
        Net(lambda x, g, d: d(torch.sigmoid(x) * g(x)), g=linear(outputs=1), d=linear()),
        {"mul": False},
    ),
    "two linear layers behind one": (
        Net(lambda x, a, b, c: b(a(x)) * c(a(x)), a=linear(), b=linear(), c=linear()),
        {},
    ),
}


def graph_of(model: nn.Module, x: Tensor = ROWS) -> Graph:
    return capture(model.eval(), (x,), {})


def random_factors(graph: Graph) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        site.tensor: torch.exp(torch.randn(site.readers[0].weight_shape[1], generator=generator))
        for site in find_sites(graph)
    }


def calls(graph: Graph) -> int:
    return sum(node.op == "call_function" for node in graph.module.graph.nodes)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_equal_and_a_multiplication_is_made_where_it_must(name: str) -> None:
    model, wanted = MODELS[name]
    graph = graph_of(model)
    sites = {site.tensor: site.is_free for site in find_sites(graph)}
    for tensor, is_free in wanted.items():
        assert sites[tensor] == is_free
    factors = random_factors(graph)
    smoothed = smooth(graph, factors)
    verify(smoothed)
    expected = model(ROWS)
    assert torch.allclose(graph.module(ROWS), expected, atol=1e-6)
    assert torch.allclose(smoothed.module(ROWS), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(graph.module(ROWS), graph.module(ROWS))
    assert calls(smoothed) == calls(graph) + sum(not is_free for is_free in sites.values())
    assert smoothed.layers == graph.layers


def test_the_tensor_is_divided_and_what_else_reads_it_is_not() -> None:
    graph = graph_of(MODELS["post-norm"][0])
    factor = torch.linspace(0.5, 4, WIDTH)
    smoothed = smooth(graph, {"layers.n": factor})
    before, after = values(graph), values(smoothed)
    assert torch.allclose(after["layers.n"], before["layers.n"] / factor, rtol=1e-5)
    assert torch.equal(after["layers.n.unscaled"], before["layers.n"])
    (add,) = smoothed.module.graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)
    assert "layers.n.unscaled" in [name_of(source) for source in add.all_input_nodes]


def values(graph: Graph) -> dict[str, Tensor]:
    """Every tensor by its stable name."""
    found: dict[str, Tensor] = {}

    class Look(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                found[name_of(n)] = value.detach()
            return value

    Look(graph.module).run(ROWS)
    return found


def test_tied_weights_are_left_alone() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.first, self.second = norm(), linear(), linear()
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.first(self.norm(x)) + self.second(x)
            return y

    assert find_sites(graph_of(Tied())) == ()


def test_factors_that_do_not_fit_are_refused() -> None:
    graph = graph_of(MODELS["gelu"][0])
    for factors in ({"elsewhere": torch.ones(24)}, {"gelu": torch.ones(7)}):
        with pytest.raises(PlanError, match="make the plan again"):
            smooth(graph, factors)


def channel_stats(graph: Graph, x: Tensor, folder: Path) -> dict[str, ChannelStats]:
    spool = Spool(folder)
    for part in torch.split(x, 24):
        spool.append([part], batch=len(part))
    return observe_channels(graph, spool, [site.readers[0] for site in find_sites(graph)])


def test_channels_are_observed_over_all_batches(tmp_path: Path) -> None:
    model = MODELS["gelu"][0]
    assert isinstance(model, Net)
    found = channel_stats(graph_of(model), ROWS, tmp_path)["layers.b"]
    seen = F.gelu(model.layers["a"](ROWS)).detach().reshape(-1, 24).double().numpy()
    assert np.allclose(found.minimum.numpy(), seen.min(axis=0), atol=1e-6)
    assert np.allclose(found.maximum.numpy(), seen.max(axis=0), atol=1e-6)
    assert np.allclose(found.square.numpy(), (seen**2).mean(axis=0), rtol=1e-5)
    assert np.allclose(found.largest.numpy(), np.abs(seen).max(axis=0), atol=1e-6)


Floats = npt.NDArray[np.float64]


def in_uint8(x: Floats) -> Floats:
    """One asymmetric scale for the whole array (Jacob et al. 2018, arXiv:1712.05877)."""
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    step = (high - low) / 255
    zero = np.rint(-low / step)
    rounded: Floats = (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step
    return rounded


def in_int8(w: Floats) -> Floats:
    """One symmetric scale per row."""
    step = np.abs(w).max(axis=1, keepdims=True) / 127
    rounded: Floats = np.clip(np.rint(w / step), -127, 127) * step
    return rounded


def planted(size: float, tmp_path: Path) -> tuple[Floats, Floats, Floats]:
    """Inputs with one channel ``size`` times larger, weights, and the factors found for them."""
    generator = np.random.default_rng(0)
    x, w = generator.uniform(-1, 1, (4096, WIDTH)), generator.standard_normal((32, WIDTH))
    x[:, 3] *= size
    w[:, 3] /= size  # so that the widened weights are no less even than before
    model = Net(lambda x, a: a(F.gelu(x)), a=linear(outputs=32))
    with torch.no_grad():
        model.layers["a"].get_parameter("weight").copy_(torch.from_numpy(w))
    graph = graph_of(model, torch.zeros(2, WIDTH))
    stats = ChannelStats(
        minimum=torch.from_numpy(x.min(axis=0)),
        maximum=torch.from_numpy(x.max(axis=0)),
        square=torch.from_numpy((x**2).mean(axis=0)),
    )
    (site,) = find_sites(graph)
    factors = find_smoothing(graph, [site], {"layers.a": stats})
    return x, w, factors["gelu"].double().numpy()


@pytest.mark.parametrize("size", [8.0, 30.0])
def test_the_error_of_a_planted_outlier_falls_by_the_square_of_its_size(
    size: float, tmp_path: Path
) -> None:
    """The others' errors are those of the tensor's step, which the outlier makes wider."""
    x, w, s = planted(size, tmp_path)
    assert s[3] > size / 1.5
    assert np.allclose(np.delete(s, 3), 1, atol=0.5)
    exact = x @ w.T
    before = np.square(in_uint8(x) @ w.T - exact).mean()
    after = np.square(in_uint8(x / s) @ (w * s).T - exact).mean()
    steps = np.ptp(x) / np.ptp(x / s)
    noise = np.square(w).sum() / np.square(w * s).sum()
    assert before / after == pytest.approx(steps**2 * noise, rel=0.15)
    assert before / after > size**2 / 2


@pytest.mark.parametrize("factor", [1.0, 4.0, 12.0])
def test_the_expected_error_is_what_rounding_makes(factor: float, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    x, w = generator.standard_normal((4096, 64)), generator.standard_normal((256, 64))
    x[:, 5] *= 20
    s = np.ones(64)
    s[5] = factor
    stats = ChannelStats(
        minimum=torch.from_numpy(x.min(axis=0)),
        maximum=torch.from_numpy(x.max(axis=0)),
        square=torch.from_numpy((x**2).mean(axis=0)),
    )
    wrong = in_uint8(x / s) @ in_int8(w * s).T - x @ w.T
    found = expected_error(torch.from_numpy(w), stats, torch.from_numpy(s))
    assert found == pytest.approx(np.square(wrong).sum(axis=1).mean(), rel=0.1)


def test_a_multiplication_must_be_worth_its_time(tmp_path: Path) -> None:
    x = ROWS * torch.where(torch.arange(WIDTH) == 3, 50.0, 1.0)
    model = Net(lambda x, a: a(torch.tanh(x / 60)), a=linear())
    graph = graph_of(model)
    seen = channel_stats(graph, x, tmp_path)
    sites = find_sites(graph)
    assert set(find_smoothing(graph, sites, seen)) == {"tanh"}
    assert set(find_smoothing(graph, sites, seen, {"tanh": 1e-3, "other": 1e-3})) == {"tanh"}
    assert not find_smoothing(graph, sites, seen, {"tanh": 1e-3, "other": 1.0})
    free = graph_of(MODELS["pre-norm"][0])
    seen = channel_stats(free, ROWS, tmp_path / "free")
    assert set(find_smoothing(free, find_sites(free), seen, {"other": 1.0})) == {"layers.n"}


def test_even_channels_are_left_alone(tmp_path: Path) -> None:
    x = torch.rand(64, 6, WIDTH, generator=torch.Generator().manual_seed(2)) * 2 - 1
    graph = graph_of(Net(lambda x, a: a(torch.tanh(x)), a=linear()))
    zero = Net(lambda x, a: a(torch.tanh(x * 0)), a=linear())
    assert not find_smoothing(graph, find_sites(graph), channel_stats(graph, x, tmp_path))
    dead = graph_of(zero)
    assert not find_smoothing(dead, find_sites(dead), channel_stats(dead, x, tmp_path / "dead"))
    assert len(LEVELS) == len(set(LEVELS))


def test_losses_are_the_worst_way_to_round_a_tensor() -> None:
    setting = make_setting(MODELS["a norm before two layers"][0], ROWS[:2])
    one, two = (torch.full((8,), size) for size in (1.0, 2.0))
    sensitivity = Sensitivity(
        scores={
            ("edge", "layers.n", "layers.a"): one,
            ("dynamic", "layers.b", "uint8"): two,
            ("weight", "layers.a", "w8/rtn"): 9 * one,
        },
        samples=8,
        probes=1,
    )
    inputs = {layer.name: layer.input for layer in setting.graph.layers}
    assert input_losses(setting, sensitivity) == {
        inputs["layers.a"]: 0.5,
        inputs["layers.b"]: 2.0,
    }


def test_only_tensors_that_may_become_integers_are_rescaled() -> None:
    model = MODELS["pre-norm"][0]
    able = make_setting(model, ROWS[:2], schemes=["w8a8-dynamic"])
    assert [site.tensor for site in rescalable(able)] == ["layers.n"]
    assert can_equalise(able)
    assert not can_equalise(make_setting(model, ROWS[:2], schemes=["w8"]))
    relu = Net(lambda x, a, b: b(F.relu(a(x))), a=linear(), b=linear())
    assert rescalable(make_setting(relu, ROWS[:2])) == ()  # a chain
    assert rescalable(make_setting(trained_cnn(), images(2)[0])) == ()


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
def test_a_post_norm_block_with_outliers(scheme: str, tmp_path: Path) -> None:
    model = MODELS["post-norm"][0]
    setting = make_setting(model, ROWS[:2], schemes=[scheme])
    # Enough rows that the outlier's range is seen; what lies outside is clipped, smoothed or not.
    rows = torch.randn(4096, 6, WIDTH, generator=torch.Generator().manual_seed(1))
    bench = make_workbench(setting, rows, tmp_path, kinds=("regression",), size=1024)
    choice = tuple(len(setting.space.candidates[group.name]) - 1 for group in setting.groups)
    knobs: dict[str, Knob] = {"observer": "minmax", "bias_correction": False}
    plain = bench.simulator.measure(choice, knobs)
    assert bench.simulator.measure(choice, {**knobs, "equalise": True}) < plain / 4
    assert bench.simulator.measure(choice, knobs) == plain


def test_the_output_of_a_layer_keeps_its_name() -> None:
    """An embedding that a residual reads too could only be rescaled by taking its name."""
    torch.manual_seed(0)
    net = Net(
        lambda x, table, fc: table(x) + fc(table(x)), table=nn.Embedding(9, WIDTH), fc=linear()
    )
    graph = capture(net, (torch.randint(0, 9, (4, 6)),), {})
    assert find_sites(graph) == ()
