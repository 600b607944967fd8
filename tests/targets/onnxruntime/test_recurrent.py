"""Transposed convolutions, LSTM and GRU: planned by name, written, read back, executed, agreed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from advisor.passes.candidates import regions_of
from advisor.passes.capture import capture
from advisor.passes.graph import LayerAssignment, QuantizedGraph
from advisor.passes.quantize import quantize, round_weights
from advisor.passes.recurrent import LSTM_DYNAMIC
from advisor.targets.capability import load_capability
from advisor.targets.onnxruntime import TARGET
from advisor.targets.onnxruntime.manifest import SESSION_ENTRIES
from advisor.targets.onnxruntime.session import open_session
from tests.graph.models import seeded

ORT = load_capability("onnxruntime")


def build(model: nn.Module, inputs: tuple[Tensor, ...], scheme: str, op: str) -> QuantizedGraph:
    """The quantized graph with ``scheme`` on every layer whose operator starts with ``op``."""
    graph = capture(model.eval(), inputs, {})
    chosen = {
        layer.name: LayerAssignment(
            scheme=scheme if layer.op.startswith(op) else "fp32", algorithm="rtn"
        )
        for layer in graph.layers
    }
    return quantize(
        graph,
        chosen,
        weights=round_weights(graph, chosen),
        params={},
        regions=regions_of(graph, ORT),
        rules=ORT.static,
        dynamic=ORT.dynamic,
    )


def check(quantized: QuantizedGraph, folder: Path, kernel: str) -> dict[str, Any]:
    """Emit and verify; the formats of the layers that ``kernel`` runs."""
    artifact = TARGET.emit(quantized, folder)
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    formats = artifact.read_back()
    planned = {name: choice.scheme for name, choice in quantized.assignment.items()}
    assert {name: found.scheme for name, found in formats.items()} == planned
    return {name: found for name, found in formats.items() if found.kernel == kernel}


class UNet(nn.Module):
    """One level down and up again, with group norm."""

    def __init__(self, up: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.down = nn.Conv2d(8, 32, 3, stride=2, padding=1)
        self.up = up
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.relu(self.norm(self.first(x)))
        coarse = torch.relu(self.down(fine))
        result: Tensor = self.head(torch.cat([fine, self.up(coarse)], 1))
        return result


PADDED: dict[str, Any] = {"kernel_size": 3, "padding": 1, "output_padding": 1}


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("fp16", PADDED),
        ("w8", PADDED),
        ("w8", {**PADDED, "groups": 4}),
        ("w4-g32", {"kernel_size": 2}),
    ],
    ids=str,
)
def test_transposed_convolutions(scheme: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = seeded(UNet(nn.ConvTranspose2d(32, 8, stride=2, **options)))
    quantized = build(model, (torch.randn(2, 1, 8, 8),), scheme, "conv_transpose")
    assert set(check(quantized, tmp_path, "ConvTranspose")) == {"up"}


def test_a_transposed_convolution_of_one_dimension(tmp_path: Path) -> None:
    model = seeded(nn.Sequential(nn.ConvTranspose1d(4, 6, 4, stride=2, dilation=2, bias=False)))
    quantized = build(model, (torch.randn(2, 4, 9),), "w8", "conv_transpose")
    assert set(check(quantized, tmp_path, "ConvTranspose")) == {"0"}


class Tagger(nn.Module):
    """Token ids through a recurrent network; every state is used."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(19, 32)
        self.net: Any = getattr(nn, kind)(32, 32, batch_first=True, **options)
        self.head = nn.Linear(32 * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        y, last = self.net(self.embed(ids))
        last = last if isinstance(last, tuple) else (last,)
        return (self.head(y), *(state.transpose(0, 1) for state in last))


DEEP: dict[str, Any] = {"num_layers": 2, "bidirectional": True}


@pytest.mark.parametrize(
    ("kind", "scheme", "options"),
    [
        ("LSTM", "fp32", DEEP),
        ("LSTM", "fp16", {}),
        ("LSTM", "w8", DEEP),
        ("LSTM", "w8", {"bias": False}),
        ("LSTM", "w4-g32", {}),
        ("LSTM", "w8a8-dynamic", DEEP),
        ("LSTM", "w8a8-dynamic", {"bias": False}),
        ("GRU", "fp32", {"bidirectional": True}),
        ("GRU", "fp16", {}),
        ("GRU", "w8", DEEP),
        ("GRU", "w8-g32", {"bias": False}),
    ],
    ids=str,
)
def test_recurrent_networks(
    kind: str, scheme: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model: Any = seeded(Tagger(kind, **options))
    ids = torch.randint(0, 19, (2, 5))
    quantized = build(model, (ids,), scheme, kind.lower())
    found = check(quantized, tmp_path, "DynamicQuantizeLSTM" if "a8" in scheme else kind)
    weights = [name for name, value in model.net.named_parameters() if value.ndim == 2]
    assert set(found) == {f"net.{name}" for name in weights}


@pytest.mark.parametrize("scheme", ["fp32", "w8a8-dynamic"])
def test_states_that_the_caller_gives(scheme: str, tmp_path: Path) -> None:
    class Streaming(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.LSTM(8, 16)

        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y, (h, c) = self.net(x, (h, c))
            return y, h, c

    inputs = (torch.randn(4, 3, 8), torch.randn(1, 3, 16), torch.randn(1, 3, 16))
    quantized = build(seeded(Streaming()), inputs, scheme, "lstm")
    assert len(check(quantized, tmp_path, "LSTM" if scheme == "fp32" else "DynamicQuantizeLSTM"))


@pytest.mark.parametrize("reverse", [False, True])
def test_the_simulated_state_is_the_kernels(reverse: bool, tmp_path: Path) -> None:
    """One DynamicQuantizeLSTM made by hand, with weights that integers hold exactly."""
    generator = np.random.default_rng(3)
    x = generator.standard_normal((9, 1, 24)).astype(np.float32)
    integers = [
        generator.integers(-127, 128, (1, inputs, 128)).astype(np.int8) for inputs in (24, 32)
    ]
    scales = [generator.uniform(1e-3, 2e-3, (1, 128)).astype(np.float32) for _ in range(2)]
    bias = generator.standard_normal((1, 256)).astype(np.float32) / 8
    constants: dict[str, Any] = {
        "W": integers[0],
        "R": integers[1],
        "B": bias,
        "Ws": scales[0],
        "Rs": scales[1],
    }
    constants |= {name: np.zeros((1, 128), np.int8) for name in ("Wz", "Rz")}
    node = helper.make_node(
        "DynamicQuantizeLSTM",
        ["X", "W", "R", "B", "", "", "", "", "Ws", "Wz", "Rs", "Rz"],
        ["Y"],
        domain="com.microsoft",
        hidden_size=32,
        direction="reverse" if reverse else "forward",
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "one.onnx")
    found = open_session(tmp_path / "one.onnx", SESSION_ENTRIES, threads=1).run(None, {"X": x})[0]

    def in_torch(rows: np.ndarray[Any, Any]) -> Tensor:
        """Gates from input, output, forget, cell to input, forget, cell, output."""
        i, o, f, c = np.split(rows, 4)
        return torch.as_tensor(np.concatenate([i, f, c, o]))

    weights = [
        in_torch((values[0] * scale).T.astype(np.float32))
        for values, scale in zip(integers, scales, strict=True)
    ]
    biases = [in_torch(part) for part in np.split(bias[0], 2)]
    rounded = torch.ops.advisor.quantize_dequantize_dynamic(
        torch.as_tensor(x), "uint8", False, "per-tensor", 0
    )
    wanted = LSTM_DYNAMIC(rounded, None, None, *weights, *biases, reverse, False)
    assert np.abs(np.asarray(found)[:, 0] - wanted.numpy()).max() < 2e-6
