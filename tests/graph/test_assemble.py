"""The problem's bytes, indicators, memory and divergence against independent computations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from advisor.assemble import build_problem, error_columns, weight_column
from advisor.formats import scheme_named, storage_bits
from advisor.passes.graph import name_of
from advisor.passes.sensitivity import Column, Sensitivity
from advisor.search.problem import Candidate, Choice, Problem, evaluate, holding
from advisor.setting import Setting
from tests.graph.small import (
    Transformer,
    images,
    make_setting,
    make_workbench,
    sentences,
    trained_cnn,
)


class Residual(nn.Module):
    """A convolution whose output is added to another's, pooled, and read by two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Conv2d(4, 4, 1)
        self.one, self.two = nn.Linear(64, 3), nn.Linear(64, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = F.relu(self.a(x))
        h = F.max_pool2d(h + F.relu(self.b(h)), 2)
        h = torch.sigmoid(self.c(h)).flatten(1)
        return self.one(h), self.two(h)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(24, 32), nn.Linear(32, 24)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.table(ids))
        return logits


def models() -> list[tuple[str, nn.Module, torch.Tensor]]:
    torch.manual_seed(0)
    return [
        ("cnn", trained_cnn(), images(4)[0]),
        ("residual", Residual().eval(), images(4)[0]),
        ("transformer", Transformer().eval(), sentences(4)[0]),
        ("tied", Tied().eval(), sentences(4)[0]),
    ]


@pytest.fixture(scope="module", params=["cnn", "residual", "transformer", "tied"])
def setting(request: pytest.FixtureRequest) -> Setting:
    ((model, example),) = [(m, x) for name, m, x in models() if name == request.param]
    return make_setting(model, example, batch=2)


def random_choices(problem: Problem, count: int, seed: int = 0) -> Iterator[Choice]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield tuple(int(rng.integers(len(options))) for options in problem.candidates)


def scheme_of(setting: Setting, choice: Choice) -> dict[str, str]:
    return {
        layer: setting.space.candidates[group.name][index].scheme
        for group, index in zip(setting.groups, choice, strict=True)
        for layer in group.layers
    }


def static_layers(setting: Setting, choice: Choice) -> set[str]:
    schemes = scheme_of(setting, choice)
    return {name for name, scheme in schemes.items() if scheme_named(scheme).is_static}


def test_size_is_the_sum_of_storage_bits(setting: Setting) -> None:
    problem = build_problem(setting)
    weights = {layer.weight for layer in setting.graph.layers}
    state = {k: v for k, v in setting.graph.module.state_dict().items() if k not in weights}
    other = sum(value.numel() * value.element_size() for value in state.values())
    for choice in random_choices(problem, 50):
        schemes = scheme_of(setting, choice)
        stored = {
            layer.weight: storage_bits(layer.weight_shape, scheme_named(schemes[layer.name]).weight)
            for layer in setting.graph.layers
            if not layer.is_product
        }
        expected = sum(stored.values()) // 8 + other
        assert evaluate(problem, choice).size_bytes == expected


def op_of(node: Node) -> str:
    return str(node.target).split(".")[1] if node.op == "call_function" else ""


def is_fused(node: Node) -> bool:
    """Whether the tensor disappears inside the activation function that alone reads it."""
    users = list(node.users)
    return len(users) == 1 and op_of(users[0]) in ACTIVATIONS


def fused_source(node: Node) -> Node:
    while op_of(node) in ACTIVATIONS and is_fused(node.all_input_nodes[0]):
        node = node.all_input_nodes[0]
    return node


def is_read_as_integers(node: Node, static: set[str]) -> bool:
    """Whether something that runs in integers reads the tensor, directly or after followers."""
    for user in node.users:
        if name_of(user) in static:
            return True
        end = user
        while is_fused(end):
            (end,) = end.users
        if op_of(user) in FOLLOWERS and is_read_as_integers(end, static):
            return True
    return False


def integer_tensors(setting: Setting, choice: Choice) -> set[str]:
    """Tensors that ONNX Runtime computes as integers, by walking forward with its rules.

    A static convolution writes integers (after a relu that follows it alone); addition, pooling
    and the moves do when all they read is integer and something integer reads them.
    """
    static = static_layers(setting, choice)
    found: set[Node] = set()
    for node in setting.graph.module.graph.nodes:
        if node.op != "call_function" or is_fused(node):
            continue
        source = fused_source(node)
        if op_of(source).startswith("conv") and name_of(source) in static:
            found.add(node)
        elif op_of(source) in FOLLOWERS and is_read_as_integers(node, static):
            reads = [n for n in source.all_input_nodes if is_float(n)]
            if reads and found.issuperset(reads):
                found.add(node)
    return {name_of(node) for node in found}


ACTIVATIONS = frozenset(["relu", "hardtanh", "clamp"])
FOLLOWERS = frozenset(
    [
        "add",
        "max_pool2d",
        "cat",
        "pad",
        "view",
        "reshape",
        "flatten",
        "transpose",
        "permute",
        "unsqueeze",
        "squeeze",
    ]
)


def is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point() and node.op != "get_attr"


def truth_by_name(problem: Problem, choice: Choice) -> dict[str, bool]:
    holds = holding(problem, choice)
    return {
        indicator.name: bool(held)
        for indicator, held in zip(problem.indicators, holds, strict=True)
    }


def test_indicators_are_true_when_they_say_so(setting: Setting) -> None:
    problem = build_problem(setting)
    nodes = {name_of(n): n for n in setting.graph.module.graph.nodes if n.op != "get_attr"}
    for choice in random_choices(problem, 150, seed=1):
        static, integer = static_layers(setting, choice), integer_tensors(setting, choice)
        truth = truth_by_name(problem, choice)
        quantized = setting.regions.quantized(static)
        assert {name for name, for_all in quantized.items() if for_all} == integer
        for site in setting.regions.sites:
            tensor = site.tensor
            assert truth.get(f"{tensor} is integer", False) == (tensor in integer)
            edges = [
                reader for reader in site.readers if reader in static and tensor not in integer
            ]
            for reader in site.readers:
                assert truth[f"{reader} reads {tensor} as integer"] == (reader in edges)
            assert truth.get(f"{tensor} is quantized on its own", False) == bool(edges)
            assert (quantized.get(tensor) is False) == bool(edges)
            leaves = tensor in integer and any(
                not takes_integers(user, static, integer) for user in nodes[tensor].users
            )
            assert truth.get(f"{tensor} becomes float again", False) == leaves


def takes_integers(user: Node, static: set[str], integer: set[str]) -> bool:
    """Whether a reader of an integer tensor runs in integers."""
    if name_of(user) in static:
        return True
    end = user
    while len(end.users) == 1 and str(next(iter(end.users)).target).split(".")[1:2] == ["relu"]:
        (end,) = end.users
    return str(user.target).split(".")[1:2] != ["relu"] and name_of(end) in integer


ALIASES = frozenset(
    ["view", "reshape", "flatten", "unsqueeze", "squeeze", "select", "slice", "expand"]
)
IN_PLACE = frozenset(["add", "mul", "relu", "sigmoid", "softmax", "tanh", "div", "sub"])
IN_BLOCKS = frozenset(["relu", "hardtanh", "clamp", "add", "mul", "max_pool2d", "avg_pool2d"])
"""What keeps the blocked layout of a float convolution before it, of which nothing is planned."""


@dataclass(slots=True)
class Block:
    """Memory that ONNX Runtime plans: who is in it, from when to when."""

    kind: str
    stays: list[tuple[Node, int, int]]


def lifetimes(
    nodes: Sequence[Node],
) -> tuple[dict[Node, tuple[int, int]], dict[Node, Node]]:
    """First and last instant of every tensor with memory of its own, and whose memory each uses.

    Instants count nodes.
    """
    owner: dict[Node, Node] = {}
    lives: dict[Node, tuple[int, int]] = {}
    for now, node in enumerate(nodes):
        sources = [owner[n] for n in node.all_input_nodes if n in owner]
        for source in sources:
            lives[source] = (lives[source][0], max(lives[source][1], now))
        is_alias = node.op == "call_function" and op_of(node) in ALIASES
        owner[node] = sources[0] if is_alias and sources else node
        lives.setdefault(owner[node], (now, now))
        if node.op == "placeholder" or any(user.op == "output" for user in node.users):
            lives[owner[node]] = (lives[owner[node]][0], len(nodes))
    return lives, owner


def plan_blocks(
    nodes: Sequence[Node], lives: Mapping[Node, tuple[int, int]], owner: Mapping[Node, Node]
) -> list[Block]:
    """A first-fit free list by shape, as the allocation planner of ONNX Runtime keeps one."""
    blocks: list[Block] = []
    free: list[Block] = []
    used: dict[Node, Block] = {}
    for now, node in enumerate(nodes):
        if node not in lives or node.op == "output":
            continue
        begin, end = lives[node]
        is_own = node.op == "placeholder" or any(user.op == "output" for user in node.users)
        kind = "" if is_own else f"{[str(d) for d in node.meta['val'].shape]}"
        read = [owner[n] for n in node.all_input_nodes if owner.get(n) in used]
        ending = [n for n in read if lives[n][1] == now and used[n].kind == kind != ""]
        vacant = [b for b in free if b.kind == kind != ""]
        if ending and op_of(node) in IN_PLACE:
            block = used[ending[0]]
            if op_of(node) in ACTIVATIONS:  # computed with the operator before it
                begin = block.stays.pop()[1]
        elif vacant:
            block = vacant[0]
            free.remove(block)
        else:
            block = Block(kind, [])
            blocks.append(block)
        block.stays.append((node, begin, end))
        used[node] = block
        for done in [b for b in blocks if b not in free and b.stays[-1][2] == now]:
            free.insert(0, done)
    return blocks


def in_blocks(node: Node, setting: Setting) -> bool:
    if op_of(node).startswith("conv2d"):
        return True
    reads = [n for n in node.all_input_nodes if n.op != "get_attr"]
    return op_of(node) in IN_BLOCKS and all(in_blocks(n, setting) for n in reads)


def has_copy(
    node: Node, now: int, nodes: Sequence[Node], static: set[str], integer: set[str]
) -> bool:
    """Whether the tensor is there both as integers and as floats."""
    readers = [nodes.index(user) for user in node.users]
    if not readers or not min(readers) <= now <= max(readers):
        return False
    if name_of(node) in integer:
        return not all(takes_integers(user, static, integer) for user in node.users)
    return is_float(node) and any(name_of(user) in static for user in node.users)


def test_memory_is_the_peak_of_what_is_alive(setting: Setting) -> None:
    """Every instant replayed: weights, plus each block from its making to its last reader.

    The allocator takes more than is alive, a tensor's other form fits into blocks that wait for
    their next tensor, and opening the model is an instant of its own.
    """
    problem = build_problem(setting)
    rules = setting.capability.memory
    assert rules is not None
    layers = {layer.output: layer for layer in setting.graph.layers}
    weights = {layer.weight for layer in setting.graph.layers}
    state = {k: v for k, v in setting.graph.module.state_dict().items() if k not in weights}
    constants = sum(value.numel() * value.element_size() for value in state.values())
    nodes = [n for n in setting.graph.module.graph.nodes if n.op != "get_attr"]
    everything, owner = lifetimes(nodes)
    lives = {n: life for n, life in everything.items() if n.name in setting.shapes}
    blocks = plan_blocks(nodes, lives, owner)
    both = rules.activations + rules.planned

    def ints(node: Node) -> float:
        return setting.shapes[node.name].count * both

    def floats(node: Node) -> float:
        info = setting.shapes[node.name]
        if node.op == "placeholder":
            return info.size_bytes
        return info.size_bytes * (rules.activations if in_blocks(node, setting) else both)

    for choice in random_choices(problem, 50, seed=2):
        schemes = scheme_of(setting, choice)
        static, integer = static_layers(setting, choice), integer_tensors(setting, choice)
        resident: dict[str, int] = {}
        opening: dict[str, int] = {}
        for layer in setting.graph.layers:
            cost = setting.cost(layer, schemes[layer.name])
            resident.setdefault(layer.weight, cost.resident_bytes)
            opening.setdefault(layer.weight, cost.opening_bytes)
        peak = 0.0
        for now, point in enumerate(nodes):
            if point.op == "placeholder" or point not in lives:
                continue
            if is_fused(point) and op_of(point) in ACTIVATIONS:
                continue
            alive, waiting = 0.0, 0.0
            for block in blocks:
                if block.stays[0][1] <= now <= block.stays[-1][2]:
                    tenant, begin, _ = next(stay for stay in block.stays if now <= stay[2])
                    size = ints(tenant) if name_of(tenant) in integer else floats(tenant)
                    alive, waiting = (
                        (alive + size, waiting) if begin <= now else (alive, waiting + size)
                    )
            copies = sum(
                floats(node) if name_of(node) in integer else ints(node)
                for node in nodes
                if has_copy(node, now, nodes, static, integer) and node.name in setting.shapes
            )
            here = layers.get(name_of(point))
            scratch = setting.cost(here, schemes[here.name]).scratch_bytes if here else 0
            peak = max(peak, alive + max(waiting, copies) + scratch)
        running = sum(resident.values()) + peak
        expected = constants + max(running, sum(opening.values()))
        assert evaluate(problem, choice).memory_bytes == pytest.approx(expected)


def fake_sensitivity(setting: Setting, seed: int = 0) -> Sensitivity:
    """Random scores for every column that a problem may ask for."""
    generator = torch.Generator().manual_seed(seed)
    columns: list[Column] = []
    layers = {layer.name: layer for layer in setting.graph.layers}
    for group in setting.groups:
        for option in setting.space.candidates[group.name]:
            for name in group.layers:
                columns += error_columns(layers[name], option, setting.capability)
    for site in setting.regions.sites:
        columns.append(("tensor", site.tensor, ""))
        columns += [("edge", site.tensor, reader) for reader in site.readers]
    scores = {column: torch.randn(8, generator=generator) for column in dict.fromkeys(columns)}
    return Sensitivity(scores=scores, samples=8, probes=1)


def half_mean_square(sensitivity: Sensitivity, columns: Sequence[Column]) -> float:
    total = sum(sensitivity.scores[column].numpy().astype(np.float64) for column in columns)
    return float(np.square(total).mean() / 2)


def test_divergence_is_the_sum_of_sensitivities(setting: Setting) -> None:
    sensitivity = fake_sensitivity(setting)
    problem = build_problem(setting, sensitivity)
    layers = {layer.name: layer for layer in setting.graph.layers}
    for choice in random_choices(problem, 50, seed=3):
        expected = 0.0
        for group, index in zip(setting.groups, choice, strict=True):
            option = setting.space.candidates[group.name][index]
            if scheme_named(option.scheme).weight.dtype != "float32":
                columns = [weight_column(layers[name], option) for name in group.layers]
                rules = setting.capability.dynamic.get(option.scheme)
                if rules is not None:
                    reading = [name for name in group.layers if layers[name].op != "embedding"]
                    columns += [("dynamic", name, rules.label) for name in reading]
                expected += half_mean_square(sensitivity, columns)
        static, integer = static_layers(setting, choice), integer_tensors(setting, choice)
        for site in setting.regions.sites:
            if site.tensor in integer:
                expected += half_mean_square(sensitivity, [("tensor", site.tensor, "")])
                continue
            for reader in set(site.readers) & static:
                expected += half_mean_square(sensitivity, [("edge", site.tensor, reader)])
        assert evaluate(problem, choice).divergence == pytest.approx(expected, rel=1e-6)


def test_float_everywhere_loses_nothing(setting: Setting) -> None:
    problem = build_problem(setting, fake_sensitivity(setting))
    floats = tuple(
        next(i for i, option in enumerate(options) if option.scheme == "fp32")
        for options in problem.candidates
    )
    found = evaluate(problem, floats)
    assert found.divergence == 0.0
    state = setting.graph.module.state_dict()
    assert found.size_bytes == sum(v.numel() * v.element_size() for v in state.values())
    truth = truth_by_name(problem, floats)
    assert not any(held for name, held in truth.items() if not name.startswith(("no", "only")))


def test_schemes_that_round_the_weight_alike_share_its_score(setting: Setting) -> None:
    layer = setting.graph.layers[0]
    static = weight_column(layer, Candidate(scheme="w8a8", algorithm="mse"))
    assert static == weight_column(layer, Candidate(scheme="w8", algorithm="mse"))
    assert static == ("weight", layer.name, "w8/mse")
    for scheme in ("w8a8-dynamic", "w8"):
        assert static == weight_column(layer, Candidate(scheme=scheme, algorithm="mse"))
    other = Candidate(scheme="fp16", algorithm="none")
    assert weight_column(layer, other) == ("weight", layer.name, "fp16/none")


def test_runtimes_that_compute_in_float16_hold_float16_tensors() -> None:
    model, example = trained_cnn(), images(4)[0]
    wide = make_setting(model, example, batch=4)
    narrow = make_setting(model, example, batch=4, runtime="coreml", profile="m2")
    assert narrow.capability.float_dtype == "float16"
    # Neither's allocator counts here, so that only the width of the tensors differs.
    wide = replace(wide, capability=replace(wide.capability, memory=None))
    memory: list[float] = []
    for found in (wide, narrow):
        problem = build_problem(found)
        scheme = "fp32" if found is wide else "fp16"
        choice = tuple(
            next(i for i, option in enumerate(options) if option.scheme == scheme)
            for options in problem.candidates
        )
        memory.append(evaluate(problem, choice).memory_bytes)
    assert memory[1] == memory[0] / 2


def test_float_everywhere_measures_as_nothing(tmp_path: Path) -> None:
    setting = make_setting(trained_cnn(), images(4)[0])
    bench = make_workbench(setting, images(64)[0], tmp_path, size=16)
    problem = build_problem(setting)
    floats = tuple(0 for _ in problem.groups)
    assert all(options[0].scheme == "fp32" for options in problem.candidates)
    assert bench.simulator.measure(floats, {}) == pytest.approx(0.0, abs=1e-7)
    names = {layer.name for layer in setting.graph.layers}
    assert set(bench.simulator.assignment(floats)) == names
