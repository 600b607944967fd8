"""Operators that a runtime computes inside the one before them cost no pass of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advisor.assemble import build_problem
from advisor.breakdown import break_down
from advisor.otherops import other_parts
from advisor.passes.capture import capture
from advisor.passes.fusion import find_fused
from advisor.passes.regions import short_op
from advisor.passes.shapes import infer_shapes
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
