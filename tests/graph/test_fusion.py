"""Operators that a runtime computes inside the one before them cost no pass of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advisor.assemble import build_problem
from advisor.breakdown import break_down, break_down_energy, break_down_memory
from advisor.otherops import other_parts
from advisor.passes.capture import capture
from advisor.passes.fusion import find_fused
from advisor.passes.regions import short_op
from advisor.passes.shapes import infer_shapes
from advisor.profiles.loader import load_profile
from advisor.search.problem import evaluate
from advisor.setting import Setting
from advisor.targets.capability import load_capability
from tests.graph.small import Transformer, make_setting, sentences


class Chain(nn.Module):
    """A convolution, a chain on its output, and an activation whose input is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.one(x))
        y = self.two(h)
        found: torch.Tensor = torch.sigmoid(F.relu(y) * h) + y
        return found


def fused(runtime: str) -> list[str]:
    x = torch.randn(1, 2, 4, 4)
    graph = capture(Chain().eval(), (x,), {})
    found = find_fused(
        graph.module,
        graph.layers,
        infer_shapes(graph.module, [x]),
        load_capability(runtime).fusion,
    )
    return [short_op(node) for node in found]


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ("onnxruntime", ["relu"]),  # after a convolution, unless another reads that
        ("tflite", ["relu"]),
        ("tensorrt", ["relu", "mul", "sigmoid", "add"]),  # pointwise chains
        ("coreml", []),  # nothing is published
    ],
)
def test_what_is_fused(runtime: str, expected: list[str]) -> None:
    assert fused(runtime) == expected


@pytest.fixture(scope="module")
def setting() -> Setting:
    return make_setting(Transformer().eval(), sentences(4)[0], batch=2)


def test_fused_operators_take_less_time(setting: Setting) -> None:
    rules = load_capability("tensorrt").fusion
    fusing = replace(setting, capability=replace(setting.capability, fusion=rules))
    apart = replace(setting, capability=replace(setting.capability, fusion=()))
    assert other_parts(fusing).overhead_s < other_parts(apart).overhead_s
    assert other_parts(fusing).seconds < other_parts(apart).seconds


def test_the_breakdown_adds_up_to_the_latency(setting: Setting) -> None:
    problem = build_problem(setting)
    rng = np.random.default_rng(0)
    for _ in range(20):
        choice = tuple(int(rng.integers(len(options))) for options in problem.candidates)
        found = evaluate(problem, choice)
        parts = break_down(setting, problem, choice, found)
        assert parts.seconds == pytest.approx(found.latency_s, rel=1e-9)
        assert parts.timed_s == 0


@pytest.mark.parametrize(
    ("runtime", "profile"),
    [("onnxruntime", "intel-vnni"), ("tflite", "arm-neon"), ("tensorrt", "a100")],
)
def test_the_parts_of_memory_add_up_to_it(runtime: str, profile: str) -> None:
    model = Transformer().eval()
    made = make_setting(model, sentences(4)[0], runtime=runtime, profile=profile, batch=2)
    other = replace(made, cache_bytes=7e5)
    problem = build_problem(other)
    rng = np.random.default_rng(1)
    for _ in range(10):
        choice = tuple(int(rng.integers(len(options))) for options in problem.candidates)
        found = evaluate(problem, choice)
        parts = break_down_memory(other, problem, choice, found)
        assert parts.total_bytes == pytest.approx(found.memory_bytes, rel=1e-9)
        assert parts.opening_bytes > 0 or parts.cache_bytes == 7e5
        assert (parts.runtime_bytes is None) == (other.capability.memory is None)


def test_the_parts_of_energy_add_up_to_it(setting: Setting) -> None:
    assert setting.profile.energy is None
    assert break_down_energy(setting, tuple(0 for _ in setting.groups)) is None
    a100 = replace(setting, profile=load_profile("a100"), costs={})
    problem = build_problem(a100)
    choice = tuple(0 for _ in setting.groups)
    parts = break_down_energy(a100, choice)
    assert parts is not None
    assert a100.profile.energy is not None
    assert parts.joules == pytest.approx(evaluate(problem, choice).energy_j, rel=1e-9)
    macs = sum(layer.macs for layer in a100.graph.layers)
    per_op = a100.profile.energy.joules_per_op
    assert parts.compute_j <= 2 * macs * max(figure.value for figure in per_op.values())
    assert parts.memory_j > 0
