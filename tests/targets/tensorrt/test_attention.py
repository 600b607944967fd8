"""Products of attention in every dtype, and layers that share a tensor or a weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from advisor.api import advise
from advisor.plan import Plan
from advisor.targets.onnxruntime.onnxfile import load_model
from advisor.targets.tensorrt.artifact import TensorrtArtifact
from advisor.targets.tensorrt.lint import lint

pytest.importorskip("tensorrt_rtx")

WIDTH, HEADS, TOKENS = 64, 4, 12


class Attention(nn.Module):
    """Self-attention over (B, T, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        parts = (self.query(x), self.key(x), self.value(x))
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        given: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return given


class Blocks(nn.Module):
    """A table of positions, three attentions, each with its products in a dtype of its own, and a
    layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.positions = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.first, self.second, self.third = (Attention() for _ in range(3))
        self.twice = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.positions
        for block in (self.first, self.second, self.third):
            x = x + block(functional.layer_norm(x, (WIDTH,)))
        x = functional.gelu(self.twice(x))
        last: Tensor = self.twice(x)
        return last


PINS = {
    "op:linear": "fp16",
    "first.key": "w8",
    "first.sdpa*": "a16a16",
    "second.sdpa*": "a8a8",
    "third.sdpa*": "a8a8-fp8",
}


@pytest.fixture(scope="module")
def plan() -> Plan:
    torch.manual_seed(0)
    return advise(
        Blocks().eval(),
        target="l4",
        calibration=[torch.randn(2, TOKENS, WIDTH) for _ in range(2)],
        pin=PINS,
        trials=1,
        cache=False,
    )


@pytest.fixture(scope="module")
def rows(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    artifact = plan.compile(tmp_path_factory.mktemp("attention") / "artifact")
    assert isinstance(artifact, TensorrtArtifact)
    read = json.loads((artifact.path / "acceptance.json").read_text())
    return {row["name"]: {**row, "path": artifact.path} for row in read["layers"]}


def test_products_are_computed_in_the_planned_dtype(rows: dict[str, dict[str, Any]]) -> None:
    found = {name: (row["scheme"], row["kernel"]) for name, row in rows.items() if "sdpa" in name}
    assert found == {
        "first.sdpa.qk": ("a16a16", "float16"),
        "first.sdpa.pv": ("a16a16", "float16"),
        "second.sdpa.qk": ("a8a8", "int8"),
        "second.sdpa.pv": ("a8a8", "int8"),
        "third.sdpa.qk": ("a8a8-fp8", "float8"),
        "third.sdpa.pv": ("a8a8-fp8", "float8"),
    }


def test_an_int8_weight_beside_a_float16_one_stays_int8(
    rows: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """The Clip that keeps them apart changes no number, and a rule asks for it."""
    assert rows["first.key"]["kernel"] == "int8 weight, float16 input"
    artifact = TensorrtArtifact.load(rows["first.key"]["path"])
    model = onnx.load(artifact.path / "model.onnx")
    clip = next(node for node in model.graph.node if node.op_type == "Clip")
    x = np.random.default_rng(0).normal(size=(3, TOKENS, WIDTH)).astype(np.float32)
    before = artifact.run(x)
    for node in model.graph.node:
        if clip.output[0] in node.input:
            node.input[list(node.input).index(clip.output[0])] = clip.input[0]
    model.graph.node.remove(clip)
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in artifact.path.glob("*.json"):
        (bare / path.name).write_bytes(path.read_bytes())
    onnx.save(model, bare / "model.onnx")
    np.testing.assert_array_equal(TensorrtArtifact.load(bare).run(x), before)
    found = lint(load_model(bare / "model.onnx"), sm="89")
    assert [each.name for each in found] == ["first.key"]


def test_a_weight_that_two_layers_read_is_never_quantized_alone(plan: Plan) -> None:
    refused = {
        option.scheme: option.reason
        for layer in plan.layers
        if layer.name == "twice#2"
        for option in layer.options
        if option.reason
    }
    assert "expands a weight under w8 that several layers read" in refused["w8"]
    assert "w8a8" not in refused


def test_a_table_that_is_added_stays_what_it_is(rows: dict[str, dict[str, Any]]) -> None:
    """The kernel that adds it reads float16, which the layer before wrote: no fallback."""
    assert rows["embed"]["kernel"] == "float16 weight, float16 input"
    assert rows["add"]["scheme"] == "fp32"
