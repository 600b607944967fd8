"""Files with integer inputs and outputs, with channels last, with several of each, by signature."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advisor.errors import UnsupportedError
from advisor.passes.graph import QuantizedGraph
from advisor.targets.tflite import TARGET, TfliteOptions
from advisor.targets.tflite.artifact import TfliteArtifact
from advisor.targets.tflite.emit import MODEL_FILE
from advisor.targets.tflite.flatbuffer import FlatModel
from tests.targets.tflite.models import (
    DepthwiseNet,
    Encoder,
    ResidualNet,
    TwoInputs,
    images,
    seeded,
    tokens,
)

Quantizer = Callable[..., QuantizedGraph]


class Segmenter(nn.Module):
    """One channel in, images out: both ends are moved, and a pool comes before any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        masks: Tensor = self.head(F.relu(self.conv(F.max_pool2d(x, 2))))
        return masks


def gray(batch: int) -> Tensor:
    return torch.randn(batch, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def emitted(graph: QuantizedGraph, folder: Path, **options: Any) -> TfliteArtifact:
    folder.mkdir(exist_ok=True)
    return TARGET.with_options(TfliteOptions(**options)).emit(graph, folder)


def open_plainly(artifact: TfliteArtifact) -> Any:
    """The file in LiteRT's own interpreter, without anything of ours."""
    litert: Any = importlib.import_module("ai_edge_litert.interpreter")
    return litert.Interpreter(model_path=str(artifact.path / MODEL_FILE))


def codes(artifact: TfliteArtifact) -> list[str]:
    model = FlatModel((artifact.path / MODEL_FILE).read_bytes())
    return [model.code(operator) for operator in model.operators]


@pytest.fixture(scope="module")
def net(make_quantized: Quantizer) -> QuantizedGraph:
    return make_quantized(seeded(ResidualNet()), (images(4),), "w8a8", batch=2)


@pytest.mark.parametrize("io", ["float", "int8", "uint8"])
@pytest.mark.parametrize("layout", ["model", "channels_last"])
def test_every_form_is_the_same_plan(
    io: str, layout: str, net: QuantizedGraph, tmp_path: Path
) -> None:
    artifact = emitted(net, tmp_path, io=io, layout=layout)
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    assert verification.max_abs_error == 0
    x = images(5, seed=7)
    with torch.no_grad():
        simulated = net.module(x)
    torch.testing.assert_close(artifact.run(x), simulated, rtol=0, atol=0)
    found = codes(artifact)
    assert ("TRANSPOSE" in found) == (layout == "model")
    assert ("DEQUANTIZE" in found) == (io == "float")
    assert ("QUANTIZE" in found) == (io != "int8")


@pytest.mark.parametrize(("io", "shift"), [("int8", 0), ("uint8", 128)])
def test_the_runtime_itself_takes_and_gives_the_integers(
    io: str, shift: int, net: QuantizedGraph, tmp_path: Path
) -> None:
    artifact = emitted(net, tmp_path, io=io, layout="channels_last")
    interpreter = open_plainly(artifact)
    interpreter.allocate_tensors()
    (inp,), (out,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert inp["dtype"].__name__ == out["dtype"].__name__ == io
    assert list(inp["shape"]) == [2, 16, 16, 3]
    (scale, zero_point), (out_scale, out_zero) = inp["quantization"], out["quantization"]
    planned = net.activations["x"]
    assert np.float32(scale) == np.float32(planned.scale)
    assert zero_point == planned.zero_point + shift
    limits = np.iinfo(io)
    x = images(2, seed=9)
    integers = np.round(x.numpy().transpose(0, 2, 3, 1) / np.float32(scale)) + zero_point
    interpreter.set_tensor(inp["index"], np.clip(integers, limits.min, limits.max).astype(io))
    interpreter.invoke()
    found = interpreter.get_tensor(out["index"]).astype(np.float32)
    with torch.no_grad():
        simulated = net.module(x).numpy()
    np.testing.assert_array_equal((found - out_zero) * np.float32(out_scale), simulated)


def test_the_manifest_says_what_the_file_takes(net: QuantizedGraph, tmp_path: Path) -> None:
    emitted(net, tmp_path, io="int8", layout="channels_last")
    ports = json.loads((tmp_path / "artifact.json").read_text())["ports"]
    planned = net.activations["x"]
    assert ports[0] == {
        "kind": "input",
        "name": "x",
        "dtype": "int8",
        "shape": [2, 16, 16, 3],
        "order": [0, 2, 3, 1],
        "scale": float(np.float32(planned.scale)),
        "zero_point": planned.zero_point,
    }
    assert ports[1]["kind"] == "output"
    assert ports[1]["dtype"] == "int8"


def test_a_file_that_takes_something_else_is_found(net: QuantizedGraph, tmp_path: Path) -> None:
    emitted(net, tmp_path / "a", io="int8")
    emitted(net, tmp_path / "b", io="uint8")
    shutil.copy(tmp_path / "b" / MODEL_FILE, tmp_path / "a" / MODEL_FILE)
    verification = TARGET.load(tmp_path / "a").verify()
    assert not verification.ok
    names = {mismatch.name: mismatch for mismatch in verification.mismatches}
    assert names["input x"].expected.startswith("int8 [2, 3, 16, 16], scale")
    assert names["input x"].found.startswith("uint8 [2, 3, 16, 16], scale")


def test_images_that_come_out_have_channels_last_too(
    make_quantized: Quantizer, tmp_path: Path
) -> None:
    graph = make_quantized(seeded(Segmenter()), (gray(4),), "w8a8", batch=2)
    artifact = emitted(graph, tmp_path, io="int8", layout="channels_last")
    assert artifact.verify().ok
    assert codes(artifact) == ["MAX_POOL_2D", *codes(artifact)[1:-1], "CONV_2D"]
    assert {port.name: port.shape for port in artifact.manifest.ports} == {
        "x": (2, 16, 16, 1),
        "output": (2, 8, 8, 4),
    }
    with torch.no_grad():
        torch.testing.assert_close(artifact.run(gray(3)), graph.module(gray(3)), rtol=0, atol=0)


def test_grouped_and_depthwise_layers_keep_their_numbers(
    make_quantized: Quantizer, tmp_path: Path
) -> None:
    graph = make_quantized(seeded(DepthwiseNet()), (images(4),), "w8a8", batch=2)
    artifact = emitted(graph, tmp_path, io="uint8", layout="channels_last")
    assert artifact.verify().ok
    assert "TRANSPOSE" not in codes(artifact)


def test_channels_last_keeps_a_float_plan(make_quantized: Quantizer, tmp_path: Path) -> None:
    model = seeded(ResidualNet())
    graph = make_quantized(model, (images(4),), "w8", batch=2)
    artifact = emitted(graph, tmp_path, layout="channels_last")
    assert artifact.verify().ok
    assert artifact.manifest.ports[0].shape == (2, 16, 16, 3)


def test_tokens_have_no_channels(make_quantized: Quantizer, tmp_path: Path) -> None:
    graph = make_quantized(seeded(Encoder()), (tokens(4),), "w8a8-dynamic", batch=2)
    artifact = emitted(graph, tmp_path, layout="channels_last")
    assert artifact.verify().ok
    (ids, *_) = artifact.manifest.ports
    assert (ids.name, ids.dtype, ids.shape, ids.order) == ("input_ids", "int32", (2, 6), (0, 1))


def test_integers_are_refused_where_the_plan_has_floats(
    make_quantized: Quantizer, tmp_path: Path
) -> None:
    dynamic = make_quantized(seeded(ResidualNet()), (images(4),), "w8a8-dynamic", batch=2)
    with pytest.raises(UnsupportedError, match=r"input 'x' cannot be integers.*TRANSPOSE.*w8a8"):
        emitted(dynamic, tmp_path, io="int8")
    schemes = {"stem": "w8a8", "body": "w8a8", "side": "w8a8", "head": "w8"}
    mixed = make_quantized(seeded(ResidualNet()), (images(4),), schemes, batch=2)
    with pytest.raises(UnsupportedError, match=r"output 'output' cannot be integers: FULLY_CONN"):
        emitted(mixed, tmp_path, io="int8")


class Several(nn.Module):
    """A tuple that holds a tensor twice, and an input of keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor, *, gain: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        y = self.head(x * gain)
        return y, {"again": y, "top": y.argmax(-1), "sum": y.sum(-1)}


def test_signatures_are_called_by_the_models_own_names(
    make_quantized: Quantizer, tmp_path: Path
) -> None:
    model = seeded(Several())
    x, gain = torch.randn(2, 8), torch.randn(2, 8)
    graph = make_quantized(model, (x,), "fp32", batch=2, kwargs={"gain": gain})
    artifact = emitted(graph, tmp_path)
    assert artifact.verify().ok
    runner = open_plainly(artifact).get_signature_runner()
    found = runner(x=x.numpy(), gain=gain.numpy())
    with torch.no_grad():
        y, rest = model(x, gain=gain)
    names = [record.name for record in artifact.manifest.outputs]
    assert sorted(found) == sorted(names)
    for name, expected in zip(names, (y, *rest.values()), strict=True):
        np.testing.assert_allclose(found[name], expected.numpy(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(artifact.run(x, gain=gain), (y, rest), rtol=1e-5, atol=1e-6)


def test_two_images_and_a_dict_of_two_kinds(make_quantized: Quantizer, tmp_path: Path) -> None:
    left, right = images(4), images(4, seed=2)
    graph = make_quantized(seeded(TwoInputs()), (left, right), "w8a8", batch=4)
    artifact = emitted(graph, tmp_path, io="int8", layout="channels_last")
    assert artifact.verify().ok
    ports = {port.name: port for port in artifact.manifest.ports}
    assert [ports[name].dtype for name in ("left", "right", "score")] == ["int8"] * 3
    assert ports["label"].dtype in ("int32", "int64")
    runner = open_plainly(artifact).get_signature_runner()
    feeds = {
        name: np.clip(
            np.round(x.numpy().transpose(0, 2, 3, 1) / np.float32(ports[name].scale))
            + ports[name].zero_point,
            -128,
            127,
        ).astype(np.int8)
        for name, x in (("left", left), ("right", right))
    }
    found = runner(**feeds)
    with torch.no_grad():
        simulated = graph.module(left, right)
    score = (found["score"].astype(np.float32) - ports["score"].zero_point) * np.float32(
        ports["score"].scale
    )
    np.testing.assert_array_equal(score, simulated["score"].numpy())
    np.testing.assert_array_equal(found["label"], simulated["label"].numpy())
