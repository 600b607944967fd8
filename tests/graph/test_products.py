"""Products of two activations: attention spelled out, quantized, scored, costed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advisor.assemble import build_problem
from advisor.passes.attention import ATTENTION, open_products
from advisor.passes.capture import capture
from advisor.passes.fx import node_named
from advisor.passes.graph import ActivationParams, Graph, LayerAssignment, name_of
from advisor.passes.group import group_layers
from advisor.passes.quantize import quantize
from advisor.passes.regions import Regions, find_regions
from advisor.passes.sensitivity import Question, probe
from advisor.search.problem import evaluate
from advisor.setting import graph_for
from advisor.targets.capability import Capability, SchemeSupport, load_capability
from tests.graph.models import seeded
from tests.graph.small import make_setting, make_workbench, sentences, trained_transformer

HEADS, WIDTH, LENGTH = 4, 32, 6


def able(capability: Capability) -> Capability:
    """The capability of a runtime that quantizes products."""
    assert capability.static is not None
    support = SchemeSupport(scheme="a8a8", ops=("matmul",))
    return replace(
        capability,
        schemes={**capability.schemes, "a8a8": support},
        static=replace(capability.static, second_operand="int8"),
    )


ABLE = able(load_capability("onnxruntime"))


class Attention(nn.Module):
    """Multi-head attention over (B, T, 32); options go to torch's operator."""

    def __init__(self, mask: Tensor | None = None, key_heads: int = HEADS, **options: Any) -> None:
        super().__init__()
        self.options = options
        narrow = WIDTH // HEADS * key_heads
        self.q, self.k, self.v = (nn.Linear(WIDTH, n) for n in (WIDTH, narrow, narrow))
        self.fixed: Tensor | None
        self.register_buffer("fixed", mask)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (self._split(layer(x)) for layer in (self.q, self.k, self.v))
        seen = self.fixed if mask is None else mask
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, **self.options)
        return mixed.transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], -1, WIDTH // HEADS).transpose(1, 2)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hiding(*shape: int) -> Tensor:
    """True where a key is seen; the third query sees none."""
    seen = random(*shape, LENGTH, LENGTH, seed=2) > -0.3
    seen[..., 2, :] = False
    return seen


def opened(model: nn.Module, *inputs: Tensor) -> Graph:
    return open_products(capture(seeded(model), inputs, {}))


def targets(graph: Graph) -> list[Any]:
    return [node.target for node in graph.module.graph.nodes]


def product_names(graph: Graph) -> list[str]:
    return [layer.name for layer in graph.layers if layer.is_product]


FLOAT_MASK = torch.where(hiding(3, 1), random(3, 1, LENGTH, LENGTH, seed=5), -torch.inf)


@pytest.mark.parametrize(
    ("model", "mask"),
    [
        (Attention(), None),
        (Attention(is_causal=True), None),
        (Attention(scale=0.7, key_heads=2, enable_gqa=True), None),
        (Attention(), hiding(3, 1)),
        (Attention(), hiding(3, HEADS)),
        (Attention(), FLOAT_MASK),
        (Attention(hiding()), None),
        (Attention(random(LENGTH, LENGTH, seed=4)), None),
    ],
)
def test_attention_computes_what_torch_does(model: nn.Module, mask: Tensor | None) -> None:
    inputs = (random(3, LENGTH, WIDTH),) + (() if mask is None else (mask,))
    graph = opened(model, *inputs)
    assert ATTENTION not in targets(graph)
    torch.testing.assert_close(graph.module(*inputs), model(*inputs), rtol=1e-5, atol=1e-6)
    assert product_names(graph) == ["sdpa.qk", "sdpa.pv"]


class Causal(nn.Module):
    """Two causal layers over token ids of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, WIDTH)
        self.one, self.two = Attention(is_causal=True), Attention(is_causal=True)

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.two(self.one(self.table(ids)))
        return result


def test_a_causal_mask_follows_the_length_and_is_made_once() -> None:
    model = Causal()
    graph = opened(model, torch.zeros(2, 5, dtype=torch.long))
    ids = torch.randint(0, 9, (3, 11), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(graph.module(ids), model(ids), rtol=1e-5, atol=1e-6)
    assert targets(graph).count(torch.ops.aten.ge.Tensor) == 1
    assert product_names(graph) == ["one.sdpa.qk", "one.sdpa.pv", "two.sdpa.qk", "two.sdpa.pv"]


def test_attention_with_dropout_stays_whole() -> None:
    graph = opened(Attention(dropout_p=0.5), random(2, LENGTH, WIDTH))
    assert ATTENTION in targets(graph)
    assert not product_names(graph)


def test_only_runtimes_that_quantize_products_see_them() -> None:
    graph = capture(seeded(Attention()), (random(2, LENGTH, WIDTH),), {})
    whole = graph_for(graph, load_capability("tflite"))
    assert ATTENTION in targets(whole)
    assert not product_names(whole)
    assert product_names(graph_for(graph, ABLE)) == ["sdpa.qk", "sdpa.pv"]


class Products(nn.Module):
    """Every way to multiply: by itself, by a constant, batched, plain."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(2, WIDTH, 3))

    def forward(self, x: Tensor, square: Tensor) -> tuple[Tensor, ...]:
        return (
            torch.bmm(x, x.transpose(1, 2)),
            square @ square,
            x @ self.table,
            torch.mm(x[0], x[1].t()),
        )


def test_products_are_layers_without_weight() -> None:
    graph = opened(Products(), random(2, 5, WIDTH), random(2, 4, 4))
    products = [layer for layer in graph.layers if layer.is_product]
    assert [(layer.op, layer.macs) for layer in products] == [
        ("matmul", 2 * 5 * 5 * WIDTH),
        ("matmul", 2 * 4 * 4 * 4),
        ("matmul", 5 * 5 * WIDTH),
    ]
    assert all(layer.weight == "" and layer.weight_count == 0 for layer in products)
    assert (products[1].input, products[1].other) == ("square", "square")
    assert [layer.weight for layer in graph.layers if not layer.is_product] == ["table"]
    groups = group_layers(graph, ABLE)
    assert all(len(group.layers) == 1 for group in groups)


def regions(graph: Graph, *, static: tuple[str, ...]) -> Regions:
    return find_regions(graph, ABLE.static, set(static))


def test_both_operands_are_quantized_for_the_product_alone() -> None:
    graph = opened(Attention(), random(2, LENGTH, WIDTH))
    found = regions(graph, static=("sdpa.qk", "sdpa.pv"))
    assert {site.tensor: site.dtype for site in found.sites} == {
        "sdpa.scaled": "uint8",
        "sdpa.k": "int8",
        "transpose#3": "int8",
        "sdpa.softmax": "uint8",
    }
    assert found.quantized({"sdpa.pv"}) == {"transpose#3": False, "sdpa.softmax": False}


def test_a_tensor_that_is_both_operands_has_one_dtype() -> None:
    graph = opened(Products(), random(2, 5, WIDTH), random(2, 4, 4))
    name = next(layer.name for layer in graph.layers if layer.input == "square")
    (site,) = regions(graph, static=(name,)).sites
    assert (site.tensor, site.readers, site.dtype) == ("square", (name,), "uint8")


def integers(x: np.ndarray[Any, Any], params: ActivationParams) -> np.ndarray[Any, Any]:
    """Integer minus zero point, as ONNX defines QuantizeLinear."""
    low, high = (-128, 127) if params.dtype == "int8" else (0, 255)
    q = np.rint(x / np.float32(params.scale)).astype(np.int64) + params.zero_point
    return np.clip(q, low, high) - params.zero_point


def test_the_simulation_is_an_integer_product() -> None:
    """Against integer arithmetic in numpy, for two different operands and for one twice."""
    x, square = random(2, 5, WIDTH), random(2, 4, 4, seed=3)
    graph = opened(Products(), x, square)
    products = [layer for layer in graph.layers if layer.is_product]
    params = {
        site.tensor: ActivationParams(
            scale=0.02, zero_point=3 if site.dtype == "int8" else 131, dtype=site.dtype
        )
        for site in regions(graph, static=tuple(layer.name for layer in products)).sites
    }
    quantized = quantize(
        graph,
        {
            layer.name: LayerAssignment(
                scheme="a8a8" if layer.is_product else "fp32", algorithm="none"
            )
            for layer in graph.layers
        },
        weights={},
        params=params,
        regions=regions(graph, static=tuple(layer.name for layer in products)),
        rules=ABLE.static,
    )
    found = quantized.module(x, square)
    first, _, third = products
    turned = x.transpose(1, 2).numpy()
    expected = integers(x.numpy(), params[first.input]) @ integers(turned, params[str(first.other)])
    np.testing.assert_allclose(found[0].numpy(), expected * 0.02**2, rtol=1e-5, atol=1e-5)
    twice = integers(square.numpy(), params["square"])
    np.testing.assert_allclose(found[1].numpy(), twice @ twice * 0.02**2, rtol=1e-5, atol=1e-5)
    plain = integers(x[0].numpy(), params[third.input])
    other = integers(x[1].t().numpy(), params[str(third.other)])
    np.testing.assert_allclose(found[3].numpy(), plain @ other * 0.02**2, rtol=1e-5, atol=1e-5)
    assert set(quantized.activations) == set(params)
    assert quantized.weights == {}


class Changed(torch.fx.Interpreter):
    """The float graph with one operand of one product rounded."""

    def __init__(self, graph: Graph, tensor: str, reader: str, params: ActivationParams) -> None:
        super().__init__(graph.module, garbage_collect_values=False)
        self.tensor, self.reader, self.params = node_named(graph, tensor), reader, params

    def run_node(self, n: torch.fx.Node) -> Any:
        if name_of(n) != self.reader:
            return super().run_node(n)
        kept: Tensor = self.env[self.tensor]
        steps = (
            (kept / self.params.scale)
            .round()
            .clamp(*(bound - self.params.zero_point for bound in RANGE[self.params.dtype]))
        )
        self.env[self.tensor] = steps * self.params.scale
        value = super().run_node(n)
        self.env[self.tensor] = kept
        return value


RANGE = {"int8": (-128, 127), "uint8": (0, 255)}


def test_operands_are_scored_like_a_measured_change(tmp_path: Path) -> None:
    """In steps as coarse as 4 bits': at 8 bits the divergence is mostly float32's noise."""
    setting = make_setting(trained_transformer(), sentences(4)[0], capability=ABLE)
    bench = make_workbench(setting, sentences(256, seed=8)[0], tmp_path)
    coarse = {
        name: replace(params, scale=params.scale * 16, zero_point=params.zero_point // 16)
        for name, params in bench.simulator.params({"observer": "minmax"}).items()
    }
    sites = setting.regions.sites
    scored = probe(
        bench.graph,
        bench.data.scoring,
        Question(weights=(), sites=sites, params=coarse),
        rounded=bench.simulator.rounded,
        kinds=bench.kinds,
        powers=bench.simulator.powers,
        probes=32,
        max_samples=256,
    )
    edges = [
        (site.tensor, reader)
        for site in sites
        for reader in site.readers
        if reader.endswith((".qk", ".pv"))
    ]
    assert len(edges) == 4
    for tensor, reader in edges:
        changed = Changed(bench.graph, tensor, reader, coarse[tensor])
        total, count = 0.0, 0
        for flat in bench.data.scoring:
            with torch.no_grad():
                reference = F.log_softmax(bench.graph.module(*flat), -1)
                moved = F.log_softmax(changed.run(*flat), -1)
            total += float(F.kl_div(moved, reference, reduction="sum", log_target=True))
            count += len(reference)
        guess = scored.divergence(("edge", tensor, reader))
        assert guess == pytest.approx(total / count, rel=0.3), (tensor, reader)


def test_a_product_costs_no_bytes_and_has_its_own_candidates() -> None:
    model, example = trained_transformer(), sentences(4)[0]
    plain, rich = make_setting(model, example), make_setting(model, example, capability=ABLE)
    problems = [build_problem(setting) for setting in (plain, rich)]
    floats = [
        evaluate(
            problem,
            tuple([c.scheme for c in options].index("fp32") for options in problem.candidates),
        )
        for problem in problems
    ]
    assert floats[0].size_bytes == floats[1].size_bytes
    (product,) = [layer for layer in rich.graph.layers if layer.name.endswith(".qk")]
    assert rich.cost(product, "fp32").size_bytes == rich.cost(product, "a8a8").size_bytes == 0
    assert rich.cost(product, "a8a8").latency_s <= rich.cost(product, "fp32").latency_s
    schemes = {
        group: [option.scheme for option in options]
        for group, options in rich.space.candidates.items()
    }
    assert schemes[product.name] == ["fp32", "a8a8"]
    assert all("a8a8" not in found for name, found in schemes.items() if "sdpa" not in name)
