"""Names: stable, unique, a person's words, and in metadata that survives a second export."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advisor.passes.capture import capture
from advisor.passes.fx import clone, node_named
from advisor.passes.graph import NAME_KEY, Graph, name_of
from advisor.passes.verify import verify_nodes
from tests.graph.models import (
    CASES,
    SharedEncoder,
    captured,
    image,
    make_case,
    pair_inputs,
    seeded,
    tokens,
    vectors,
)


def names(graph: Graph) -> list[str]:
    return [name_of(node) for node in graph.module.graph.nodes if node.op != "output"]


@pytest.mark.parametrize("name", CASES)
def test_names_are_unique_and_all_there(name: str) -> None:
    _, graph = captured(name)
    nodes = [node for node in graph.module.graph.nodes if node.op == "call_function"]
    assert all(NAME_KEY in node.meta["custom"] for node in nodes)
    assert Counter(map(name_of, nodes)).most_common(1)[0][1] == 1
    assert all(node_named(graph, layer.name) for layer in graph.layers if layer.frozen is None)


@pytest.mark.parametrize("name", ["residual", "shared"])
def test_names_are_the_same_in_every_capture(name: str) -> None:
    first = captured(name)[1]
    other = make_case(name, 3)  # a new model, another batch
    second = capture(other.model, other.args, other.kwargs)
    assert names(first) == names(second)
    assert [layer.weight for layer in first.layers] == [layer.weight for layer in second.layers]


def test_names_are_the_same_from_a_module_and_from_its_export() -> None:
    case, graph = captured("residual")
    program = torch.export.export(case.model, (image(2),), strict=True)
    assert names(capture(program, (image(2),), {})) == names(graph)


@pytest.mark.parametrize("name", ["residual", "decoder", "shared"])
def test_names_survive_a_second_export(name: str) -> None:
    _, graph = captured(name)
    program = torch.export.export(clone(graph.module), graph.args, graph.kwargs)
    again = [node for node in program.graph.nodes if node.op == "call_function"]
    kept = {node.meta["custom"][NAME_KEY] for node in again if "custom" in node.meta}
    layers = {layer.name for layer in graph.layers}
    assert layers <= kept
    for node in again:
        assert NAME_KEY in node.meta.get("custom", {}), node


def test_the_second_call_of_a_module_is_number_2() -> None:
    graph = capture(seeded(SharedEncoder()), (pair_inputs(2),), {})
    assert [layer.name for layer in graph.layers] == [
        "encoder.conv",
        "encoder",
        "encoder.conv#2",
        "encoder#2",
        "head",
    ]


def test_layers_are_called_by_their_module_path() -> None:
    _, graph = captured("residual")
    assert [layer.name for layer in graph.layers] == [
        "stem",
        "blocks.0.conv1",
        "blocks.0.conv2",
        "blocks.1.conv1",
        "blocks.1.conv2",
        "head",
    ]
    assert {"pool", "relu", "blocks.0.relu", "blocks.0.add", "blocks.0.relu#2", "x"} <= set(
        names(graph)
    )


def test_layers_inside_attention_are_called_by_their_weights() -> None:
    _, graph = captured("masked")
    assert [layer.name for layer in graph.layers] == [
        "embed",
        "attention",
        "attention.out_proj",
        "head",
    ]


class Mixed(nn.Module):
    """A norm of several operators called twice, an activation called twice, free functions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(4)
        self.act = nn.GELU()
        self.weight = nn.Parameter(torch.zeros(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = F.linear(torch.tanh(self.act(self.norm(x))), self.weight)
        return x


def test_numbers_count_calls_of_one_thing() -> None:
    graph = capture(seeded(Mixed()), (vectors(2),), {})
    calls = [name_of(node) for node in graph.module.graph.nodes if node.op == "call_function"]
    once = ["norm.pow", "norm.mean", "norm.add", "norm.rsqrt", "norm.mul", "norm", "act", "tanh"]
    once.append("linear")
    assert calls == once + [f"{name}#2" for name in once]


def test_a_parametrized_layer_keeps_its_name() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)))
    graph = capture(model.eval(), (image(2),), {})
    assert [layer.name for layer in graph.layers] == ["0"]
    with torch.no_grad():
        assert torch.allclose(graph.module(image(5)), model(image(5)), atol=1e-6)


def test_free_functions_are_called_by_the_module_they_stand_in() -> None:
    _, graph = captured("decoder")
    found = names(graph)
    assert "layers.0.scaled_dot_product_attention" in found
    assert "layers.1.silu" in found
    assert "layers.0.norm1" in found
    assert "lm_head" in found
    assert not any("empty_nn_module" in name for name in found)


def test_a_graph_of_a_function_call_is_no_legal_graph() -> None:
    module = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 3)))
    assert verify_nodes(module) == ["_0: call_module is not a plain operator call"]

    class Functions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x).add_(1)

    assert [
        problem.split(":")[0] for problem in verify_nodes(torch.fx.symbolic_trace(Functions()))
    ] == [
        "relu",
        "add_",
    ]


def test_a_call_that_writes_is_no_legal_graph() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.ops.aten.relu_.default, (x,)))
    (problem,) = verify_nodes(torch.fx.GraphModule(nn.Module(), graph))
    assert "aten::relu_ changes its arguments" in problem


def test_token_names_do_not_depend_on_the_length() -> None:
    case, graph = captured("decoder")
    longer = capture(case.model, (tokens(2, 9),), {})
    assert names(longer) == names(graph)
