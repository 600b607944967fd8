"""Versions of operators against tables written from op_version.cc of LiteRT, by hand.

tflite/tools/versioning/op_version.cc in google-ai-edge/LiteRT, GetBuiltinOperatorVersion; the same
function is in tensorflow/lite/tools/versioning/op_version.cc.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advisor.passes.graph import QuantizedGraph
from advisor.targets.tflite.flatbuffer import FlatModel, schema
from advisor.targets.tflite.options import TfliteOptions
from advisor.targets.tflite.versions import version_of
from advisor.targets.tflite.weights import per_axis
from advisor.targets.tflite.write import write_model, write_with_ports
from tests.targets.tflite.flat import Shape, one_operator
from tests.targets.tflite.models import ResidualNet, images, seeded

Quantizer = Callable[..., QuantizedGraph]


def versions_in(content: bytes) -> dict[str, int]:
    """By operator the version of its entry, read with nothing but the schema's own classes."""
    generated = schema()
    names = {n: code for code, n in vars(generated.BuiltinOperator).items() if isinstance(n, int)}
    model = generated.Model.GetRootAs(content, 0)
    entries = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    assert len({entry.BuiltinCode() for entry in entries}) == len(entries)
    return {names[entry.BuiltinCode()]: entry.Version() for entry in entries}


class Everything(nn.Module):
    """Every kind of layer, and one linear layer for every scheme."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.side = nn.Conv2d(8, 8, 1)
        self.four = nn.Conv2d(8, 32, 1)
        self.rows = nn.ModuleList([nn.Linear(32, 32) for _ in range(8)])
        self.places = nn.Embedding(10, 32)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.body(x)
        x = F.max_pool2d(F.relu(self.up(x)), 2)
        x = F.relu(self.depthwise(x))
        x = F.relu(self.four(F.relu(self.side(x)))).mean((2, 3))
        for row in self.rows:
            x = torch.tanh(row(x))
        made: Tensor = x + self.places(ids)
        return made


PLANNED = {
    "stem": "w8a8",
    "body": "w8a8",
    "up": "w8a8",
    "depthwise": "w8a8",
    "side": "w8a8-dynamic",
    "four": "w4",
    "rows.0": "w8a8",
    "rows.1": "w8a8-dynamic",
    "rows.2": "w4a8-dynamic",
    "rows.3": "w4a8-dynamic-g32",
    "rows.4": "w8",
    "rows.5": "w4",
    "rows.6": "fp16",
    "rows.7": "fp32",
    "places": "w8",
}


def test_a_file_with_every_scheme(make_quantized: Quantizer) -> None:
    inputs = (images(2), torch.tensor([1, 2]))
    graph = make_quantized(seeded(Everything()), inputs, PLANNED, batch=2)
    assert {name: choice.scheme for name, choice in graph.assignment.items()} == PLANNED
    assert versions_in(write_model(graph, 2, None)) == {
        "ADD": 2,  # int8, after the second layer; the last one adds floats
        "CONV_2D": 5,  # int8 needs 3, floats with int8 weights per channel need 5
        "DEPTHWISE_CONV_2D": 3,  # int8
        "DEQUANTIZE": 6,  # of int4; int8 needs 2, int8 per channel 5, float16 3
        "EMBEDDING_LOOKUP": 4,  # int8 with one scale per row
        "FULLY_CONNECTED": 12,  # floats with int8 weights per channel; the others need 5
        "MAX_POOL_2D": 2,  # int8
        "MEAN": 1,  # floats
        "QUANTIZE": 1,
        "TANH": 1,  # floats
        "TRANSPOSE": 1,  # floats
        "TRANSPOSE_CONV": 4,  # it takes a ReLU along; a bias needs 3
    }


FLOATS = {
    "ADD": 1,
    "AVERAGE_POOL_2D": 1,
    "CONCATENATION": 1,
    "CONV_2D": 1,
    "FULLY_CONNECTED": 5,
    "MAX_POOL_2D": 1,
    "MEAN": 1,
    "PAD": 1,
    "PADV2": 1,
    "TRANSPOSE": 1,
}
"""FULLY_CONNECTED keeps the axes before the last (keep_num_dims), which needs 5."""

INTEGERS = {
    "ADD": 2,
    "AVERAGE_POOL_2D": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "FULLY_CONNECTED": 5,
    "MAX_POOL_2D": 2,
    "MEAN": 2,
    "PAD": 2,
    "QUANTIZE": 1,
    "DEQUANTIZE": 2,
    "TRANSPOSE": 1,
}


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("fp32", FLOATS),
        ("fp16", FLOATS | {"DEQUANTIZE": 3}),
        ("w8", FLOATS | {"DEQUANTIZE": 5}),
        ("w4", FLOATS | {"DEQUANTIZE": 6}),
        ("w8a8-dynamic", FLOATS | {"CONV_2D": 5, "FULLY_CONNECTED": 12}),
        ("w4a8-dynamic", FLOATS),
        ("w8a8", INTEGERS),
    ],
)
def test_one_scheme_for_all(
    scheme: str, expected: dict[str, int], make_quantized: Quantizer
) -> None:
    graph = make_quantized(seeded(ResidualNet()), (images(4),), scheme, batch=2)
    assert versions_in(write_model(graph, 2, None)) == expected


def test_integer_ends_and_moved_operators(make_quantized: Quantizer) -> None:
    graph = make_quantized(seeded(ResidualNet()), (images(4),), "w8a8", batch=2)
    ends = {"QUANTIZE", "DEQUANTIZE"}
    moved = {code: version for code, version in INTEGERS.items() if code not in ends}
    content, _ = write_with_ports(graph, 2, None, TfliteOptions(io="int8"))
    assert versions_in(content) == moved | {"TRANSPOSE": 2}  # it moves int8 now
    content, _ = write_with_ports(graph, 2, None, TfliteOptions(io="uint8"))
    assert versions_in(content) == moved | {"TRANSPOSE": 2, "QUANTIZE": 1}  # between 8 bits


WIDE: Shape = (1, 2, 2, 2, 4)
SLICED = {"ellipsisMask": 0, "newAxisMask": 0, "offset": False}


def scaled(*values: float) -> Any:
    return per_axis(np.array(values, np.float32), axis=0)


@pytest.mark.parametrize(
    ("left", "right", "made", "version"),
    [(0.5, 0.5, 0.5, 2), (0.5, 0.5, 0.25, 3), (2.0, 0.5, 0.1, 3), (1.0, 1.0, 1.0001, 2)],
)
def test_a_product_that_grows_needs_a_newer_kernel(
    left: float, right: float, made: float, version: int
) -> None:
    model = one_operator("MUL", [(4,), (4,)], (4,))
    for tensor, scale in zip((0, 1, 2), (left, right, made), strict=True):
        model.tensor(tensor).quantization = scaled(scale)
    assert version_of(model, model.operators[0]) == version


@pytest.mark.parametrize(
    ("code", "inputs", "dtype", "version"),
    [
        ("MUL", [(4,), (4,)], "FLOAT32", 1),
        ("MUL", [(4,), (4,)], "INT64", 5),
        ("TRANSPOSE", [WIDE], "INT8", 4),
        ("TRANSPOSE", [WIDE], "FLOAT32", 4),
        ("TRANSPOSE", [(1, *WIDE)], "INT8", 6),
        ("TRANSPOSE", [(2, 2)], "BOOL", 3),
        ("SLICE", [WIDE], "INT8", 5),
        ("PAD", [WIDE], "INT8", 4),
        ("MAXIMUM", [WIDE, WIDE], "INT8", 2),
        ("MAXIMUM", [WIDE, (1,)], "INT8", 3),
        ("SUB", [WIDE, (4,)], "FLOAT32", 3),
        ("SUB", [(2, 4), (4,)], "INT8", 2),
        ("RELU_N1_TO_1", [(4,)], "INT8", 1),
        ("RELU6", [(4,)], "INT8", 2),
        ("RELU", [(4,)], "INT8", 2),
        ("RESHAPE", [(4,)], "INT8", 1),
        ("SQUEEZE", [(4,)], "INT8", 1),
        ("EXPAND_DIMS", [(4,)], "INT8", 1),
        ("HARD_SWISH", [(4,)], "INT8", None),
    ],
)
def test_operators_without_weights(
    code: str, inputs: list[Shape], dtype: str, version: int | None
) -> None:
    model = one_operator(code, inputs, (4,), dtype)
    assert version_of(model, model.operators[0]) == version


@pytest.mark.parametrize(
    ("changed", "version"),
    [({}, 2), ({"ellipsisMask": 1}, 6), ({"newAxisMask": 1}, 6), ({"offset": True}, 8)],
)
def test_slices_with_strides(changed: dict[str, Any], version: int) -> None:
    options = SLICED | changed
    model = one_operator(
        "STRIDED_SLICE", [(4, 4)], (4,), options=options, kind="StridedSliceOptions"
    )
    assert version_of(model, model.operators[0]) == version


def weighted(code: str, dtype: str, weight: Shape, scales: int, **options: Any) -> FlatModel:
    """A layer on a (1, 4, 4, 8) image or (1, 8) rows, with int8 weights and no bias."""
    rows = code == "FULLY_CONNECTED"
    kind = {"FULLY_CONNECTED": "FullyConnected", "CONV_2D": "Conv2D"}.get(code, "DepthwiseConv2D")
    inputs = [(1, 8) if rows else (1, 4, 4, 8), np.ones(weight, np.int8)]
    model = one_operator(code, inputs, (1, 8), dtype, options=options, kind=f"{kind}Options")
    model.tensor(1).quantization = scaled(*[0.5] * scales)
    return model


DENSE = {"keepNumDims": False, "asymmetricQuantizeInputs": False}
KEPT = DENSE | {"keepNumDims": True}
PLAIN = {"dilationWFactor": 1, "dilationHFactor": 1}


@pytest.mark.parametrize(
    ("code", "dtype", "weight", "scales", "options", "version"),
    [
        ("FULLY_CONNECTED", "FLOAT32", (3, 8), 3, DENSE, 12),
        ("FULLY_CONNECTED", "FLOAT32", (3, 8), 1, DENSE, 6),  # without a bias
        ("FULLY_CONNECTED", "INT8", (3, 8), 3, KEPT, 6),
        ("CONV_2D", "INT8", (3, 1, 1, 8), 3, PLAIN, 3),
        ("CONV_2D", "INT8", (8, 1, 1, 2), 8, PLAIN, 6),  # four groups
        ("CONV_2D", "FLOAT32", (3, 1, 1, 8), 3, PLAIN, 5),
        ("CONV_2D", "FLOAT32", (3, 1, 1, 8), 1, PLAIN, 2),
        ("DEPTHWISE_CONV_2D", "INT8", (1, 3, 3, 8), 8, PLAIN, 3),
        ("DEPTHWISE_CONV_2D", "FLOAT32", (1, 3, 3, 8), 8, PLAIN, 6),
        ("DEPTHWISE_CONV_2D", "FLOAT32", (1, 3, 3, 8), 1, PLAIN, 4),
    ],
)
def test_layers(
    code: str, dtype: str, weight: Shape, scales: int, options: dict[str, Any], version: int
) -> None:
    model = weighted(code, dtype, weight, scales, **options)
    assert version_of(model, model.operators[0]) == version
    with_bias = model.add_tensor("bias", (8,), "INT32")
    if code == "FULLY_CONNECTED" and version != 12:
        model.operators[0].inputs = [*model.operators[0].inputs, with_bias]
        expected = {"FLOAT32": 3, "INT8": 5}[dtype]
        assert version_of(model, model.operators[0]) == expected


def test_dilated_floats_need_the_second_depthwise_kernel() -> None:
    model = weighted("DEPTHWISE_CONV_2D", "FLOAT32", (1, 3, 3, 8), 0, **PLAIN)
    model.tensor(1).type = schema().TensorType.FLOAT32
    assert version_of(model, model.operators[0]) == 1
    model.operators[0].builtinOptions.dilationHFactor = 2
    assert version_of(model, model.operators[0]) == 2
