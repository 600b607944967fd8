"""Regions: which tensors are integers, against a plain re-implementation, for many choices."""

from __future__ import annotations

import random
from collections.abc import Iterable, Set

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from advisor.passes.capture import capture
from advisor.passes.fx import operator_name
from advisor.passes.graph import Graph, name_of
from advisor.passes.regions import Regions, find_regions
from advisor.targets.capability import StaticRules, load_capability
from tests.graph.models import ResidualCNN, captured, image, seeded

RULES = load_capability("onnxruntime").static
assert RULES is not None


class Branches(nn.Module):
    """Followers of followers: adds of adds, pools of adds, a clamp, a branch that stays float."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.c, self.d = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = F.relu(self.a(x) + F.hardtanh(self.b(x)))
        pooled = F.max_pool2d(total + self.c(total), 2)
        gated = self.d(pooled) * torch.sigmoid(pooled)
        return self.head((pooled + gated).mean((2, 3))), pooled


def model_graph(name: str) -> Graph:
    if name == "residual":
        return captured("residual")[1]
    return capture(seeded(Branches()), (image(2),), {})


def capable(graph: Graph) -> set[str]:
    return {layer.name for layer in graph.layers if layer.op in ("linear", "conv1d", "conv2d")}


class Plain:
    """The rules in plain words, for one set of static layers.

    Written from the documentation of StaticRules and Regions: first what is needed, walking
    backwards; then what is produced, walking forwards.
    """

    def __init__(self, graph: Graph, rules: StaticRules, static: Set[str]) -> None:
        self.rules, self.static = rules, static
        self.nodes = [
            n for n in graph.module.graph.nodes if n.op in ("placeholder", "call_function")
        ]
        self.ops = {layer.name: layer.op for layer in graph.layers}
        self.needed: dict[Node, bool] = {}
        for node in reversed(self.nodes):
            self.needed[node] = any(self.reads_integers(user, node) for user in node.users)
        self.produced: dict[Node, bool] = {}
        for node in self.nodes:
            self.produced[node] = self.is_produced(node)

    def is_static(self, node: Node) -> bool:
        return name_of(node) in self.static

    def end_of(self, node: Node) -> Node:
        """The last of a run of fused activations, each the only reader of the one before."""
        while len(node.users) == 1 and operator_name(next(iter(node.users))) in self.rules.fused:
            node = next(iter(node.users))
        return node

    def head_of(self, node: Node) -> Node:
        while operator_name(node) in self.rules.fused:
            (before,) = [source for source in node.all_input_nodes if source.op != "get_attr"]
            if len(before.users) > 1:
                break
            node = before
        return node

    def reads_integers(self, user: Node, node: Node) -> bool:
        if self.is_static(user):
            return user.args[0] is node
        if operator_name(user) not in self.rules.followers:
            return False
        return self.needed[self.end_of(user)]

    def is_produced(self, node: Node) -> bool:
        if node is not self.end_of(node) or node.op == "placeholder":
            return False
        head = self.head_of(node)
        if name_of(head) in self.ops:
            return self.is_static(head) and self.ops[name_of(head)] in self.rules.quantized_output
        if operator_name(head) not in self.rules.followers:
            return False
        inputs = [source for source in head.all_input_nodes if source.op != "get_attr"]
        inputs = [source for source in inputs if isinstance(source.meta["val"], Tensor)]
        return self.needed[node] and all(self.produced[source] for source in inputs)

    def quantized(self) -> dict[str, bool]:
        found: dict[str, bool] = {}
        for node in self.nodes:
            readers = [u for u in node.users if self.is_static(u) and u.args[0] is node]
            if self.produced[node]:
                found[name_of(node)] = True
            elif readers:
                found[name_of(node)] = False
        return found

    def consumed(self, node: Node) -> bool:
        """Whether no reader of a produced tensor wants floats."""
        return all(
            self.is_static(user)
            if name_of(user) in self.ops
            else operator_name(user) in self.rules.followers and self.produced[self.end_of(user)]
            for user in node.users
        )


def choices(names: Iterable[str], count: int) -> list[set[str]]:
    """All subsets of a few layers, else random ones, with none and all among them."""
    ordered = sorted(names)
    if 2 ** len(ordered) <= count:
        every = range(2 ** len(ordered))
        return [{n for i, n in enumerate(ordered) if bits >> i & 1} for bits in every]
    source = random.Random(0)
    some = [{n for n in ordered if source.random() < 0.7} for _ in range(count - 2)]
    return [set(), set(ordered), *some]


def find(graph: Graph) -> Regions:
    return find_regions(graph, RULES, capable(graph))


@pytest.mark.parametrize("name", ["residual", "branches"])
def test_every_truth_is_that_of_the_plain_rules(name: str) -> None:
    assert RULES is not None
    graph = model_graph(name)
    regions = find(graph)
    nodes = {name_of(node): node for node in graph.module.graph.nodes if node.op != "get_attr"}
    seen: set[frozenset[str]] = set()
    for static in choices(capable(graph), 80):
        plain = Plain(graph, RULES, static)
        wanted = plain.quantized()
        assert regions.quantized(static) == wanted
        seen.add(frozenset(wanted))
        for tensor, expression in regions.produced.items():
            assert regions.holds(expression, static) == plain.produced[nodes[tensor]], tensor
        for tensor, expression in regions.needed.items():
            assert regions.holds(expression, static) == plain.needed[nodes[tensor]], tensor
        for tensor, expression in regions.consumed.items():
            if plain.produced[nodes[tensor]]:
                found = regions.holds(expression, static)
                assert found == plain.consumed(nodes[tensor]), tensor
    assert len(seen) > 20


def test_what_is_no_site_is_never_quantized() -> None:
    assert RULES is not None
    graph = model_graph("branches")
    sites = {site.tensor for site in find(graph).sites}
    for static in choices(capable(graph), 64):
        assert set(Plain(graph, RULES, static).quantized()) <= sites


def test_a_residual_network_by_hand() -> None:
    graph = captured("residual")[1]
    regions = find(graph)
    assert regions.quantized(set()) == {}
    # A convolution computes in integers only with an integer output; the rest reads floats again.
    assert regions.quantized({"stem"}) == {"x": False, "relu": True}
    # A linear layer has a float output.
    mean = next(layer.input for layer in graph.layers if layer.name == "head")
    assert regions.quantized({"head"}) == {mean: False}
    # The pool follows once an integer convolution reads it.
    first = regions.quantized({"stem", "blocks.0.conv1"})
    assert first == {"x": False, "relu": True, "pool": True, "blocks.0.relu": True}
    # The addition stays float while its other input is.
    half = regions.quantized({"blocks.0.conv2", "blocks.1.conv1"})
    assert half == {
        "blocks.0.relu": False,
        "blocks.0.conv2": True,
        "blocks.0.relu#2": False,
        "blocks.1.relu": True,
    }
    everything = regions.quantized(capable(graph))
    assert all(everything[name] for name in ("relu", "pool", "blocks.0.relu#2", "blocks.1.conv2"))
    assert "blocks.0.add" not in everything  # it disappears into the activation after it
    assert everything["x"] is False


def test_consumed_says_whether_floats_are_wanted_again() -> None:
    regions = find(captured("residual")[1])
    # The max pool's output is read by a convolution and by the addition of the skip.
    assert not regions.holds(regions.consumed["pool"], {"stem", "blocks.0.conv1"})
    both = {"stem", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1"}
    assert regions.holds(regions.consumed["pool"], both)
    assert not regions.holds(regions.consumed["blocks.0.relu"], {"blocks.0.conv1"})
    assert regions.holds(regions.consumed["blocks.0.relu"], {"blocks.0.conv1", "blocks.0.conv2"})


def test_without_static_quantization_there_are_no_regions() -> None:
    graph = captured("residual")[1]
    for regions in (find_regions(graph, None, capable(graph)), find_regions(graph, RULES, set())):
        assert regions.sites == ()
        assert regions.quantized({"stem"}) == {}


def test_only_capable_layers_read_integers() -> None:
    graph = captured("residual")[1]
    regions = find_regions(graph, RULES, {"stem"})
    assert [site.tensor for site in regions.sites] == ["x", "relu"]
    assert [site.readers for site in regions.sites] == [("stem",), ()]


def test_long_residual_chains_do_not_exhaust_the_stack() -> None:
    graph = capture(seeded(ResidualCNN(blocks=24)), (image(2, size=4),), {})
    regions = find(graph)
    everything = regions.quantized(capable(graph))
    assert everything["blocks.23.relu"]
    assert regions.holds(regions.produced["blocks.22.relu#2"], capable(graph))
