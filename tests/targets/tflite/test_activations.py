"""Activation functions between statically quantized layers: integers from end to end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advisor.passes.graph import ActivationParams, QuantizedGraph
from advisor.targets.manifest import CHECK_FOLDER
from advisor.targets.simulation import load_simulation
from advisor.targets.tflite import TARGET
from advisor.targets.tflite.artifact import TfliteArtifact
from advisor.targets.tflite.emit import MODEL_FILE
from advisor.targets.tflite.flatbuffer import FlatModel
from advisor.targets.tflite.interpreter import LiteModel
from tests.targets.making import Quantizer
from tests.targets.tflite.models import images, seeded

LOGISTIC = ActivationParams(scale=1 / 256, zero_point=-128, dtype="int8")
TANH = ActivationParams(scale=1 / 128, zero_point=0, dtype="int8")
HARD = ActivationParams(scale=1 / 255, zero_point=-128, dtype="int8")


class Between(nn.Module):
    """A function between two convolutions."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.function(self.first(x)))
        return y


class Gated(nn.Module):
    """Squeeze and excitation, as in MobileNetV3 and EfficientNet, with SiLU."""

    def __init__(self, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(8, 4, 1)
        self.expand = nn.Conv2d(4, 8, 1)
        self.project = nn.Conv2d(8, 6, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        scale = self.gate(self.expand(F.silu(self.reduce(self.pool(x)))))
        y: Tensor = self.project(x * scale)
        return y


class Joined(nn.Module):
    """A sigmoid joined with what is wider: one scale cannot serve both."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.cat([torch.sigmoid(self.left(x)), self.right(x)], 1))
        return y


def emit(graph: QuantizedGraph, folder: Path) -> tuple[TfliteArtifact, FlatModel, Counter[str]]:
    artifact = TARGET.emit(graph, folder)
    model = FlatModel((folder / MODEL_FILE).read_bytes())
    return artifact, model, Counter(model.code(operator) for operator in model.operators)


def steps_apart(artifact: TfliteArtifact, graph: QuantizedGraph, x: Tensor) -> float:
    """Largest difference from the simulation, in steps of the last layer's integers."""
    simulation = load_simulation(artifact.path / CHECK_FOLDER)
    with torch.no_grad():
        expected = simulation.module(x)
    found = artifact.run(x)
    step = min(each.scale for each in graph.activations.values())
    (wanted,) = expected if isinstance(expected, (tuple, list)) else (expected,)
    return float((found - wanted).abs().max()) / step


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], list[str]]] = {
    "sigmoid": (torch.sigmoid, ["LOGISTIC"]),
    "tanh": (torch.tanh, ["TANH"]),
    "silu": (F.silu, ["LOGISTIC", "MUL"]),
    "hardsigmoid": (F.hardsigmoid, ["ADD", "MUL"]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_between_static_layers_runs_on_integers(
    name: str, make_quantized: Quantizer, tmp_path: Path
) -> None:
    function, codes = FUNCTIONS[name]
    x = 2 * images(2)
    graph = make_quantized(seeded(Between(function)), (x,), "w8a8", batch=1)
    artifact, model, found = emit(graph, tmp_path)
    for code in codes:
        assert found[code] == 1
    assert found["QUANTIZE"] == found["DEQUANTIZE"] == 1  # at the model's ends
    assert {
        model.dtype(int(op.outputs[0])) for op in model.operators if model.code(op) in codes
    } == {"INT8"}
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    assert artifact.model.partitions().delegated == 1
    assert steps_apart(artifact, graph, x) < 3


def test_functions_of_a_fixed_scale_have_it(make_quantized: Quantizer) -> None:
    """LiteRT's specification of 8-bit quantization, and the sixths of a step of ReLU6."""
    for name, fixed in (("sigmoid", LOGISTIC), ("tanh", TANH), ("hardsigmoid", HARD)):
        graph = make_quantized(seeded(Between(FUNCTIONS[name][0])), (images(2),), "w8a8", batch=1)
        (found,) = [each for tensor, each in graph.activations.items() if name in tensor]
        assert found.zero_point == fixed.zero_point
        assert found.scale == pytest.approx(fixed.scale, rel=1e-7)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "hardsigmoid"])
def test_every_integer_is_the_simulations(
    name: str, make_quantized: Quantizer, tmp_path: Path
) -> None:
    """On the whole range of an int8 input, against torch on the real numbers."""
    function, _ = FUNCTIONS[name]
    x = 2 * images(4)
    graph = make_quantized(seeded(Between(function)), (x,), "w8a8", batch=1)
    _, model, _ = emit(graph, tmp_path)
    (given,) = [each for tensor, each in graph.activations.items() if "first" in tensor]
    (made,) = [each for tensor, each in graph.activations.items() if name in tensor]
    operators = [op for op in model.operators if model.code(op) in FUNCTIONS[name][1]]
    start = int(operators[0].inputs[0])
    content = model.extract(operators, [start], [int(operators[-1].outputs[0])])
    shape = model.shape(start)
    every = np.resize(np.arange(-128, 128, dtype=np.int8), shape)
    found = run(content, every)
    real = torch.from_numpy((every.astype(np.float32) - given.zero_point) * np.float32(given.scale))
    expected = np.rint(function(real).double().numpy() / made.scale) + made.zero_point
    assert np.abs(found - np.clip(expected, -128, 127)).max() <= (name == "hardsigmoid")


def run(content: bytes, x: np.ndarray) -> np.ndarray:
    (found,) = LiteModel(content).run([x])
    return found.astype(np.int64)


@pytest.mark.parametrize("gate", ["sigmoid", "hardsigmoid"])
def test_a_gated_block_is_integers_throughout(
    gate: str, make_quantized: Quantizer, tmp_path: Path
) -> None:
    x = 2 * images(2)
    graph = make_quantized(seeded(Gated(FUNCTIONS[gate][0])), (x,), "w8a8", batch=1)
    artifact, _, found = emit(graph, tmp_path)
    assert found["QUANTIZE"] == found["DEQUANTIZE"] == 1
    assert found["MEAN"] == 1
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    assert artifact.model.partitions().delegated == 1
    assert steps_apart(artifact, graph, x) < 6


def test_a_fixed_scale_that_does_not_fit_leaves_floats(
    make_quantized: Quantizer, tmp_path: Path
) -> None:
    graph = make_quantized(seeded(Joined()), (4 * images(2),), "w8a8", batch=1)
    assert not [tensor for tensor in graph.activations if "sigmoid" in tensor]
    artifact, model, _ = emit(graph, tmp_path)
    (logistic,) = [op for op in model.operators if model.code(op) == "LOGISTIC"]
    assert model.dtype(int(logistic.outputs[0])) == "FLOAT32"
    verification = artifact.verify()
    assert verification.ok, verification.mismatches


class Cancelled(nn.Module):
    """Two large numbers whose sum is next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1, bias=False)
        self.right = nn.Conv2d(3, 4, 1, bias=False)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.left(x) + self.right(x))
        return y


def test_a_sum_too_fine_for_the_kernel_stays_in_float(
    make_quantized: Quantizer, tmp_path: Path
) -> None:
    """With int8 on both sides, LiteRT ends the process when it opens the file."""
    model = seeded(Cancelled())
    left, right = model.get_parameter("left.weight"), model.get_parameter("right.weight")
    with torch.no_grad():
        right.copy_(-left * (1 + 2**-22))
    graph = make_quantized(model, (images(2),), "w8a8", batch=1)
    scales = {name: each.scale for name, each in graph.activations.items()}
    assert scales["left"] > 2**19 * scales["add"]
    artifact, model_file, _ = emit(graph, tmp_path)
    (total,) = [op for op in model_file.operators if model_file.code(op) == "ADD"]
    assert model_file.dtype(int(total.outputs[0])) == "FLOAT32"
    assert np.isfinite(artifact.run(images(1)).numpy()).all()


def test_functions_stay_in_float_between_other_schemes(
    make_quantized: Quantizer, tmp_path: Path
) -> None:
    graph = make_quantized(seeded(Between(F.silu)), (images(2),), "w8", batch=1)
    _, model, found = emit(graph, tmp_path)
    assert found["LOGISTIC"] == found["MUL"] == 1
    assert {model.dtype(int(op.outputs[0])) for op in model.operators} == {"FLOAT32"}
