"""What TensorRT builds without a word and runs in high precision."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
from onnx import ModelProto, TensorProto, helper, shape_inference

from tests.targets.tensorrt.sketch import OUTPUTS, ROWS, WIDTH, Sketch, half, image


def conv_scale_axis() -> ModelProto:
    s = Sketch()
    weight = s.dequantize(s.weight(64, 64, 3, 3), 1)
    return image(s, s.node("Conv", [s.quantize("x"), weight], "layer", pads=[1] * 4))


def weight_only_conv() -> ModelProto:
    s = Sketch()
    weight = s.dequantize(s.weight(64, 64, 3, 3), 0)
    return image(s, s.node("Conv", ["x", weight], "layer", pads=[1] * 4))


def int8_conv_transpose() -> ModelProto:
    s = Sketch()
    weight = s.dequantize(s.weight(64, 64, 2, 2), 1)
    last = s.node("ConvTranspose", [s.quantize("x"), weight], "layer", strides=[2, 2])
    return image(s, last, [1, 64, 56, 56])


def int8_conv() -> ModelProto:
    s = Sketch()
    weight = s.dequantize(s.weight(64, 64, 3, 3), 0)
    return image(s, s.node("Conv", [s.quantize("x"), weight], "layer", pads=[1] * 4))


def int8_product() -> ModelProto:
    s = Sketch()
    weight = s.dequantize(s.weight(WIDTH, OUTPUTS), 1)
    return s.model(s.node("MatMul", [s.quantize("x"), weight], "layer"))


def int8_attention() -> ModelProto:
    """A product of two activations in int8."""
    s = Sketch()
    columns = s.node("Transpose", ["x"], "columns", perm=[1, 0])
    both = [s.quantize("x"), s.quantize(columns, name="columns")]
    return s.model(s.node("MatMul", both, "layer"), outputs=[ROWS, ROWS])


def relu_behind_dequantize() -> ModelProto:
    s = Sketch()
    x = s.node("Relu", [s.quantize("x")], "relu")
    return s.model(s.node("MatMul", [x, s.dequantize(s.weight(WIDTH, OUTPUTS), 1)], "layer"))


def dynamic_int8_scale() -> ModelProto:
    s = Sketch()
    largest = s.node("ReduceMax", [s.node("Abs", ["x"], "abs")], "max", keepdims=0)
    scale = s.node("Mul", [largest, s.hold("share", np.float32(1 / 127))], "scale")
    zero = s.hold("zero", np.int8(0))
    integers = s.node("QuantizeLinear", ["x", scale, zero], "x_Q")
    x = s.node("DequantizeLinear", [integers, scale, zero], "x_DQ")
    return s.model(s.node("MatMul", [x, s.dequantize(s.weight(WIDTH, OUTPUTS), 1)], "layer"))


def int4_per_channel() -> ModelProto:
    s = Sketch()
    stored = s.pack("w_q", s.random.integers(-7, 8, (WIDTH, OUTPUTS)), TensorProto.INT4)
    steps = s.hold("w_scale", np.full(OUTPUTS, 0.01, np.float32))
    real = s.node("DequantizeLinear", [stored, steps], "w_DQ", axis=1)
    return s.model(s.node("MatMul", ["x", real], "layer"))


def int4_per_tensor() -> ModelProto:
    s = Sketch()
    stored = s.pack("w_q", s.random.integers(-7, 8, (WIDTH, OUTPUTS)), TensorProto.INT4)
    real = s.node("DequantizeLinear", [stored, s.hold("w_scale", np.float32(0.01))], "w_DQ")
    return s.model(s.node("MatMul", ["x", real], "layer"))


def int8_blocks() -> ModelProto:
    s = Sketch()
    stored = s.hold("w_q", s.random.integers(-127, 128, (WIDTH, OUTPUTS)).astype(np.int8))
    steps = s.hold("w_scale", np.full((WIDTH // 128, OUTPUTS), 0.01, np.float32))
    real = s.node("DequantizeLinear", [stored, steps], "w_DQ", axis=0, block_size=128)
    return s.model(s.node("MatMul", ["x", real], "layer"))


def int4_cast() -> ModelProto:
    """float32 scales, and a Cast of the weight to the dtype of the product."""
    s = Sketch()
    half = s.node("Cast", [s.blocks(128, np.float32)], "w_half", to=TensorProto.FLOAT16)
    x = s.node("Cast", ["x"], "x_half", to=TensorProto.FLOAT16)
    product = s.node("MatMul", [x, half], "layer")
    return s.model(s.node("Cast", [product], "wide", to=TensorProto.FLOAT))


def float_weight() -> ModelProto:
    s = Sketch()
    weight = s.hold("w", s.weight(WIDTH, OUTPUTS))
    return s.model(s.node("MatMul", [s.quantize("x"), weight], "layer"))


def int8_beside_float16() -> ModelProto:
    """Two layers of one tensor, as keys and values are."""
    s = Sketch()
    other = half(s, "x", s.hold("v", s.weight(WIDTH, OUTPUTS).astype(np.float16)), "other")
    wide = s.dequantize(s.weight(WIDTH, OUTPUTS), 1)
    narrow = s.node("Cast", [wide], "w_half", to=TensorProto.FLOAT16)
    return s.model(s.node("Add", [other, half(s, "x", narrow, "layer")], "sum"))


def parts_of_int8() -> ModelProto:
    """Queries, keys and values of two heads from one small layer; a large one is left alone."""
    s, width = Sketch(), 64
    weight = s.dequantize(s.weight(width, 3 * width), 1)
    both = s.node("MatMul", [s.quantize("x"), weight], "layer")
    view = s.node("Reshape", [both, s.hold("view", np.array([0, 0, 3, 2, 32]))], "viewed")
    axis = s.hold("axis", np.array([2]))
    cuts = [s.hold(f"cut{index}", np.array([index])) for index in range(4)]
    query, key, value = (
        s.node(
            "Transpose",
            [s.node("Squeeze", [s.node("Slice", [view, *pair, axis], f"cut_{name}"), axis], name)],
            f"{name}_heads",
            perm=[0, 2, 1, 3],
        )
        for name, pair in zip("qkv", pairwise(cuts), strict=True)
    )
    scores = s.node("MatMul", [query, s.node("Transpose", [key], "k_T", perm=[0, 1, 3, 2])], "qk")
    last = s.node("MatMul", [s.node("Softmax", [scores], "soft"), value], "pv")
    return s.model(last, inputs=[4, 8, width], outputs=[4, 2, 8, 32])


def turned_int8() -> ModelProto:
    """A small layer over tokens, its result turned back and added, as in a mixer."""
    s, tokens, inputs = Sketch(), 192, 64
    wide = s.dequantize(s.weight(inputs, tokens), 1)
    narrow = s.node("Cast", [wide], "w_half", to=TensorProto.FLOAT16)
    mixed = half(s, "x", narrow, "layer")
    turned = s.node("Transpose", [mixed], "turned", perm=[0, 2, 1])
    whole = s.node("Add", [turned, s.hold("rest", s.weight(tokens, 32))], "sum")
    return s.model(s.node("Relu", [whole], "y"), inputs=[2, 32, inputs], outputs=[2, tokens, 32])


def chained_int8() -> ModelProto:
    """The last layer of an attention with a single head."""
    s, width, outputs = Sketch(), 64, 192
    wide = s.dequantize(s.weight(width, outputs), 1)
    narrow = s.node("Cast", [wide], "w_half", to=TensorProto.FLOAT16)
    seen = s.node("MatMul", [s.node("Softmax", ["x"], "soft"), s.node("Relu", ["x"], "v")], "pv")
    heads = s.node("Transpose", [seen], "heads", perm=[0, 2, 1, 3])
    joined = s.node("Reshape", [heads, s.hold("view", np.array([0, 0, width]))], "joined")
    sizes: list[int | str] = [2, 1, width, width]
    model = s.model(half(s, joined, narrow, "layer"), inputs=sizes, outputs=[2, width, outputs])
    return shape_inference.infer_shapes(model)  # which axes have size 1 matters


def tied_int8() -> ModelProto:
    s = Sketch()
    wide = s.dequantize(s.weight(WIDTH, WIDTH), 1)
    narrow = s.node("Cast", [wide], "w_half", to=TensorProto.FLOAT16)
    first = s.node("Relu", [half(s, "x", narrow, "layer")], "relu")
    return s.model(half(s, first, narrow, "again"), outputs=[ROWS, WIDTH])


def tied_int4() -> ModelProto:
    s = Sketch()
    weight = s.blocks(128, outputs=WIDTH)
    first = s.node("Relu", [half(s, "x", weight, "layer")], "relu")
    return s.model(half(s, first, weight, "again"), outputs=[ROWS, WIDTH])


def product_of_int8_and_floats() -> ModelProto:
    """Attention with one operand quantized."""
    s = Sketch()
    columns = s.node("Transpose", ["x"], "columns", perm=[1, 0])
    product = s.node("MatMul", [s.quantize("x"), columns], "layer")
    return s.model(product, outputs=[ROWS, ROWS])


def float4_weight_alone() -> ModelProto:
    s = Sketch()
    numbers = s.random.choice([-6.0, -3.0, -1.0, 0.5, 2.0, 4.0], (OUTPUTS, WIDTH))
    stored = s.hold("w_q", numbers.astype(ml_dtypes.float4_e2m1fn))
    codes = s.hold("w_scale", np.ones((OUTPUTS, WIDTH // 16), ml_dtypes.float8_e4m3fn))
    scales = s.node("DequantizeLinear", [codes, s.hold("w_unit", np.float32(0.01))], "w_scales")
    real = s.node("DequantizeLinear", [stored, scales], "w_DQ", axis=-1, block_size=16)
    columns = s.node("Transpose", [real], "w_T", perm=[1, 0])
    return s.model(s.node("MatMul", ["x", columns], "layer"), opset=23)


def mxfp8() -> ModelProto:
    """float8 with a power of two per block of 32, in TensorRT's own operators."""
    s = Sketch()
    kinds: dict[str, Any] = {"domain": "trt", "axis": -1, "block_size": 32}
    quantizer = helper.make_node(
        "TRT_MXFP8DynamicQuantize",
        ["x"],
        ["x_q", "x_scale"],
        name="x_Q",
        output_dtype=TensorProto.FLOAT8E4M3FN,
        **kinds,
    )
    s.nodes.append(quantizer)
    s.hold("w_q", s.weight(OUTPUTS, WIDTH).astype(ml_dtypes.float8_e4m3fn))
    s.hold("w_scale", np.full((OUTPUTS, WIDTH // 32), 127, np.uint8))
    real = [
        s.node(
            "TRT_MXFP8DequantizeLinear",
            [f"{name}_q", f"{name}_scale"],
            f"{name}_DQ",
            output_dtype=TensorProto.FLOAT,
            **kinds,
        )
        for name in "xw"
    ]
    columns = s.node("Transpose", [real[1]], "w_T", perm=[1, 0])
    return s.model(s.node("MatMul", [real[0], columns], "layer"), opset=23, domains=("trt",))


SILENT: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "scale on the wrong axis": (conv_scale_axis, "89"),
    "weight-only convolution": (weight_only_conv, "89"),
    "int8 ConvTranspose": (int8_conv_transpose, "89"),
    "int8 convolution on sm75": (int8_conv, "75"),
    "Relu behind DequantizeLinear": (relu_behind_dequantize, "89"),
    "dynamic int8 scale": (dynamic_int8_scale, "89"),
    "int4 per channel": (int4_per_channel, "89"),
    "int4 per tensor": (int4_per_tensor, "89"),
    "int8 in blocks": (int8_blocks, "89"),
    "int4 through a Cast": (int4_cast, "89"),
    "float weight of a quantized input": (float_weight, "89"),
    "weight-only int8 beside float16": (int8_beside_float16, "89"),
    "parts of a small int8 layer": (parts_of_int8, "89"),
    "small weight-only int8 layer behind a product of activations": (chained_int8, "89"),
    "small weight-only int8 layer with a turned result": (turned_int8, "120"),
    "weight-only int8 read twice": (tied_int8, "89"),
    "weight-only int4 read twice": (tied_int4, "89"),
    "product of int8 and floats": (product_of_int8_and_floats, "89"),
    "weight-only NVFP4": (float4_weight_alone, "120"),
    "MXFP8": (mxfp8, "120"),
    "MXFP8 on sm89": (mxfp8, "89"),
}
"""Built without a word, and run in high precision; for which compute capability."""
