"""How XNNPACK splits a model: predicted from the data, against LiteRT's own interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advisor.assemble import build_problem
from advisor.budget import Budget
from advisor.partitions import count_partitions, count_parts, steps_of
from advisor.passes.graph import QuantizedGraph
from advisor.prepare import check_deployment, prepare
from advisor.profiles.roofline import switch_seconds
from advisor.search.problem import Choice, evaluate
from advisor.setting import Setting
from advisor.targets.tflite import TARGET
from advisor.targets.tflite.interpreter import LiteModel
from advisor.targets.tflite.timing import sizes_of
from advisor.targets.tflite.write import write_model
from tests.targets.tflite.models import seeded

Quantizer = Callable[..., QuantizedGraph]
LAYERS = 6


class Chain(nn.Module):
    """Linear layers of one shape, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


class Forked(nn.Module):
    """Branches that meet again, an embedding, and functions that XNNPACK does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.left, self.right, self.last = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        y = F.gelu(self.left(x)) + F.elu(self.right(x))
        found: Tensor = self.last(torch.cumsum(y, 1))
        return found


def setting_of(model: nn.Module, inputs: Tensor) -> Setting:
    deployment = check_deployment(
        target="arm-neon", runtime="tflite", batch=len(inputs), sequence=None, threads=1
    )
    return prepare(
        model,
        inputs,
        None,
        deployment,
        budget=Budget(),
        schemes=["w4", "w8a8"],
        pins={},
        on_unsupported="keep",
    ).setting


def choose(setting: Setting, schemes: Mapping[str, str]) -> Choice:
    """float32 for the layers that are not named."""
    choice: list[int] = []
    for group in setting.groups:
        (layer,) = group.layers
        names = [option.scheme for option in setting.space.candidates[group.name]]
        choice.append(names.index(schemes.get(layer, "fp32")))
    return tuple(choice)


@pytest.fixture(scope="module")
def chain() -> tuple[nn.Module, Setting]:
    model = seeded(Chain())
    return model, setting_of(model, torch.randn(4, 16))


@pytest.mark.parametrize("left_out", ["", "2", "23", "13", "135", "024", "0", "012345", "05"])
def test_the_interpreter_finds_as_many_partitions(
    left_out: str, chain: tuple[nn.Module, Setting], make_quantized: Quantizer
) -> None:
    model, setting = chain
    schemes = {f"layers.{i}": "w4" if str(i) in left_out else "w8a8" for i in range(LAYERS)}
    graph = make_quantized(model, (torch.randn(4, 16),), schemes, batch=4)
    content = write(graph)
    assert count_partitions(setting, choose(setting, schemes)) == partitions(content)


@pytest.mark.parametrize("left_out", [(), ("left",), ("last",), ("left", "last")])
def test_branches_and_left_out_operators_count_as_they_do_there(
    left_out: tuple[str, ...], make_quantized: Quantizer
) -> None:
    schemes = dict.fromkeys(left_out, "w4")
    model, ids = seeded(Forked()), torch.randint(0, 50, (2, 6))
    setting = setting_of(model, ids)
    graph = make_quantized(model, (ids,), {"left": "fp32"} | schemes, batch=2)
    assert count_partitions(setting, choose(setting, schemes)) == partitions(write(graph))


def write(graph: QuantizedGraph) -> bytes:
    source = graph.float_graph
    return write_model(graph, *sizes_of(source, list(source.args)))


def partitions(content: bytes) -> int:
    return LiteModel(content).partitions().delegated


def test_modelled_latency_grows_with_the_partitions(chain: tuple[nn.Module, Setting]) -> None:
    """Three layers are left out in each plan: what differs is how often the sides change."""
    _, setting = chain
    rules = setting.capability.delegate
    assert rules is not None
    each_s = switch_seconds(setting.profile, rules.launches)
    problem = build_problem(setting)
    found: dict[int, float] = {}
    for left_out, changes in (("012", 1), ("123", 2), ("024", 5)):
        choice = choose(setting, {f"layers.{i}": "w4" for i in map(int, left_out)})
        found[changes] = evaluate(problem, choice).latency_s
    assert found[2] - found[1] == pytest.approx(each_s)
    assert found[5] - found[2] == pytest.approx(3 * each_s)


def test_the_problem_counts_what_the_graph_says(chain: tuple[nn.Module, Setting]) -> None:
    """Every plan's latency with and without the price of changing sides, against a plain count."""
    _, setting = chain
    rules = setting.capability.delegate
    assert rules is not None
    free = replace(setting.capability, delegate=replace(rules, launches=0.0))
    with_price = build_problem(setting)
    without = build_problem(replace(setting, capability=free, costs={}))
    steps = steps_of(setting)
    for number in range(2**LAYERS):
        left = {f"layers.{i}" for i in range(LAYERS) if number >> i & 1}
        choice = choose(setting, dict.fromkeys(left, "w4"))
        taken = [step.layer not in left for step in steps]
        readers = [
            {taken[user] for user, each in enumerate(steps) if index in each.sources}
            for index in range(len(steps))
        ]
        crossing = sum(bool(of - {own}) for own, of in zip(taken, readers, strict=True))
        paid = evaluate(with_price, choice).latency_s - evaluate(without, choice).latency_s
        assert paid == pytest.approx(crossing * switch_seconds(setting.profile, 1), abs=1e-12)


def test_parts_of_a_delegate_are_formed_by_turns() -> None:
    """a -> b -> d and a -> c -> d with only b left out: c goes with a, d comes after b."""
    sources = [(), (0,), (0,), (1, 2)]
    assert count_parts(sources, [True, False, True, True]) == 2
    assert count_parts(sources, [True] * 4) == 1
    assert count_parts(sources, [False] * 4) == 0
    assert count_parts(sources, [False, True, True, False]) == 1


def test_acceptance_and_benchmark_tell_the_partitions(
    make_quantized: Quantizer, tmp_path: Path
) -> None:
    model = seeded(Chain())
    schemes = {f"layers.{i}": "w4" if i in (1, 3) else "fp32" for i in range(LAYERS)}
    artifact = TARGET.emit(make_quantized(model, (torch.randn(4, 16),), schemes, batch=4), tmp_path)
    found = artifact.benchmark(seconds=0.05, rounds=6)
    assert found.float_model.partitions == 1
    assert found.plan.partitions == 3
