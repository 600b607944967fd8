"""Every scheme on every operator: emitted, read back equal, run by the promised kernel, agreed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advisor.errors import UnsupportedError
from advisor.targets.onnxruntime import TARGET
from advisor.targets.onnxruntime.artifact import OnnxRuntimeArtifact

TEXT = {
    "e8": "w8",
    "e8b": "w8-g32",
    "e4": "w4-g32",
    "e2": "w2-g32",
    "e16": "fp16",
    "static": "w8a8",
    "conv": "w8a8",
    "w4": "w4-g32",
    "w4c": "w4",
    "w2": "w2-g32",
    "w8": "w8",
    "w8b": "w8-g16",
    "brief": "fp16",
    "scaled": "w4-g64",
    "twice": "w4-g32",
    "twice#2": "w4-g32",
    "head": "fp32",
}
TEXT_KERNELS = {
    "e8": "DequantizeLinear",
    "e8b": "DequantizeLinear",
    "e4": "GatherBlockQuantized",
    "e2": "GatherBlockQuantized",
    "e16": "Cast",
    "static": "MatMulIntegerToFloat",
    "conv": "QLinearConv",
    **dict.fromkeys(["w4", "w2", "scaled", "twice", "twice#2"], "MatMulNBits"),
    **dict.fromkeys(["w4c", "w8", "w8b", "brief", "head"], "MatMul"),
}
IMAGE = {
    "stem": "w8a8",
    "depth": "w8a8",
    "byte": "w8",
    "nibble": "w4-g16",
    "pair": "w2-g16",
    "brief": "fp16",
    "flat": "w8a8",
    "bare": "w8a8",
    "dense": "w4-g16",
    "last": "w4-g16",
}
IMAGE_KERNELS = {
    "stem": "QLinearConv",
    "depth": "QLinearConv",
    "flat": "MatMulIntegerToFloat",
    "bare": "MatMulIntegerToFloat",
    "dense": "MatMulNBits",
    "last": "MatMulNBits",
}


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e8, self.e8b, self.e4, self.e2, self.e16 = (nn.Embedding(51, 64) for _ in range(5))
        self.norm = nn.LayerNorm(64)
        self.static = nn.Linear(64, 64)
        self.conv = nn.Conv1d(64, 64, 3, padding=1)
        self.w4 = nn.Linear(64, 64)
        self.w4c = nn.Linear(64, 64)
        self.w2 = nn.Linear(64, 50)  # rows that do not end on a byte
        self.w8 = nn.Linear(50, 64)
        self.w8b = nn.Linear(64, 64)
        self.brief = nn.Linear(64, 64)
        self.scaled = nn.Linear(64, 64, bias=False)
        self.twice = nn.Linear(64, 64)
        self.head = nn.Linear(64, 7)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        ids = batch["ids"]
        x = self.e8(ids) + self.e8b(ids) + self.e4(ids) + self.e2(ids) + self.e16(ids)
        x = F.gelu(self.static(self.norm(x)))
        x = F.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        x = self.w8(self.w2(F.gelu(self.w4c(self.w4(x)))))
        x = self.scaled(self.brief(self.w8b(x))) * 0.125
        x = self.twice(F.relu(self.twice(x))) * batch["mask"][..., None]
        return {"logits": self.head(x), "hidden": (x, [x.mean(1)]), "ids": ids}


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.byte = nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False)
        self.nibble = nn.Conv2d(16, 16, 1)
        self.pair = nn.Conv2d(16, 16, 1)
        self.brief = nn.Conv2d(16, 16, 1)
        self.flat = nn.Linear(16, 32)
        self.bare = nn.Linear(32, 16, bias=False)
        self.dense = nn.Linear(16, 16)
        self.last = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depth(F.relu(self.stem(x)))
        x = F.relu(self.brief(self.pair(self.nibble(self.byte(x)))))
        x = F.relu(self.bare(F.relu(self.flat(x.mean((2, 3))))))
        logits: torch.Tensor = self.last(F.relu(self.dense(x)))
        return logits


def text_batch(batch: int, length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 51, (batch, length))
    return {"ids": ids, "mask": torch.ones(batch, length)}


@pytest.fixture(scope="module")
def text(
    make_quantized: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, OnnxRuntimeArtifact]:
    graph = make_quantized(Text(), {"batch": text_batch(2, 9)}, TEXT)
    return graph, TARGET.emit(graph, tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def image(
    make_quantized: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, OnnxRuntimeArtifact]:
    graph = make_quantized(Image(), (torch.randn(2, 3, 12, 12),), IMAGE)
    return graph, TARGET.emit(graph, tmp_path_factory.mktemp("image"))


def test_every_layer_of_both_models_verifies(text: Any, image: Any) -> None:
    for _, artifact in (text, image):
        verification = artifact.verify()
        assert verification.mismatches == ()
        assert verification.ok
        assert verification.layers_matched == len(artifact.manifest.layers)
        assert verification.executed_by == f"onnxruntime {onnxruntime.__version__}"
    assert verification.compared > 0


def test_schemes_and_kernels_are_the_planned_ones(text: Any, image: Any) -> None:
    found = text[1].read_back()
    assert {name: layer.kernel for name, layer in found.items()} == TEXT_KERNELS
    assert {name: layer.scheme for name, layer in found.items()} == TEXT
    found = image[1].read_back()
    assert {name: layer.scheme for name, layer in found.items()} == IMAGE
    for name, kernel in IMAGE_KERNELS.items():
        assert found[name].kernel == kernel


def test_dict_in_and_nested_structure_out_at_other_sizes(text: Any) -> None:
    graph, artifact = text
    for batch, length in ((1, 4), (3, 11)):
        call = text_batch(batch, length)
        wanted = graph.module(batch=call)
        flat = {f"batch_{name}": tensor for name, tensor in call.items()}
        for found in (artifact.run(batch=call), artifact.run(call), artifact.run(**flat)):
            assert list(found) == ["logits", "hidden", "ids"]
            assert isinstance(found["hidden"], tuple)
            assert isinstance(found["hidden"][1], list)
            torch.testing.assert_close(found["ids"], call["ids"])
            error = (found["logits"] - wanted["logits"]).abs().max()
            assert float(error) < 0.05 * float(wanted["logits"].abs().max())
    arrays = artifact.run({name: tensor.numpy() for name, tensor in call.items()})
    assert isinstance(arrays["logits"], np.ndarray)


def test_positional_image_at_batch_one_and_three(image: Any) -> None:
    graph, artifact = image
    for batch in (1, 3):
        x = torch.randn(batch, 3, 12, 12)
        found, wanted = artifact.run(x), graph.module(x)
        assert found.shape == wanted.shape
        assert float((found - wanted).abs().max()) < 0.05 * float(wanted.abs().max())


def test_integers_are_packed_and_named(text: Any, image: Any) -> None:
    model = onnx.load(text[1].path / "model.onnx")
    onnx.checker.check_model(model, full_check=False)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}

    def bytes_of(name: str, kind: int) -> int:
        assert stored[name].data_type == kind
        return len(stored[name].raw_data)

    types = onnx.TensorProto
    assert bytes_of("w4.weight_quantized_blocks", types.UINT8) == 64 * 64 // 2
    assert bytes_of("w4c.weight_quantized", types.INT4) == 64 * 64 // 2
    assert bytes_of("w2.weight_quantized_blocks", types.UINT8) == 64 * 50 // 4
    assert bytes_of("e2.weight_quantized_rows", types.UINT8) == 51 * 64 // 4
    assert bytes_of("brief.weight_float16", types.FLOAT16) == 64 * 64 * 2
    assert list(stored["static.weight_scales"].dims) == [64]
    assert {
        i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim]
        for i in model.graph.input
    }["batch_ids"] == ["batch", "sequence"]
    assert {"static", "conv", "w4", "head"} <= {node.name for node in model.graph.node}
    assert model.ir_version == 10
    assert onnx.load(image[1].path / "model.onnx").ir_version == 13


def test_nothing_private_is_in_the_files(text: Any) -> None:
    folder: Path = text[1].path
    for file in ("model.onnx", "artifact.json", "session.json"):
        content = (folder / file).read_bytes()
        for secret in (b"/test_schemes.py", b"site-packages", b"stack_trace", b"/root", b"/home"):
            assert secret not in content


def test_two_bit_embedding_blocks_are_checked(make_quantized: Any, tmp_path: Path) -> None:
    model = nn.Embedding(20, 24)
    graph = make_quantized(model, (torch.randint(0, 20, (2, 3)),), "w4")
    with pytest.raises(UnsupportedError, match="blocks of a power of two from 16 up, not 24"):
        TARGET.emit(graph, tmp_path)
