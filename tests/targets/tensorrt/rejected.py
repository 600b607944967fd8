"""What TensorRT's parser or builder refuses."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
from onnx import ModelProto, TensorProto, helper

from tests.targets.tensorrt.sketch import OUTPUTS, WIDTH, Sketch, half, image


def nonzero_point() -> ModelProto:
    s = Sketch()
    x, weight = s.quantize("x", zero=5), s.dequantize(s.weight(WIDTH, OUTPUTS), 1)
    return s.model(s.node("MatMul", [x, weight], "layer"))


def unsigned_activation() -> ModelProto:
    s = Sketch()
    x = s.quantize("x", np.uint8, zero=128)
    return s.model(s.node("MatMul", [x, s.dequantize(s.weight(WIDTH, OUTPUTS), 1)], "layer"))


def wide_activation() -> ModelProto:
    s = Sketch()
    x = s.quantize("x", np.int16)
    return s.model(s.node("MatMul", [x, s.dequantize(s.weight(WIDTH, OUTPUTS), 1)], "layer"))


def e5m2_activation() -> ModelProto:
    s = Sketch()
    x = s.quantize("x", ml_dtypes.float8_e5m2)
    return s.model(s.node("MatMul", [x, s.dequantize(s.weight(WIDTH, OUTPUTS), 1)], "layer"))


def unsigned_blocks() -> ModelProto:
    s = Sketch()
    return s.model(s.node("MatMul", ["x", s.blocks(128, np.float32, TensorProto.UINT4)], "layer"))


def int32_bias() -> ModelProto:
    s = Sketch()
    integers = s.hold("b_q", s.random.integers(-100, 100, OUTPUTS).astype(np.int32))
    steps = s.hold("b_scale", np.full(OUTPUTS, 1e-4, np.float32))
    bias = s.node("DequantizeLinear", [integers, steps], "b_DQ", axis=0)
    weight = s.dequantize(s.weight(OUTPUTS, WIDTH), 0)
    return s.model(s.node("Gemm", [s.quantize("x"), weight, bias], "layer", transB=1))


def mixed_operands() -> ModelProto:
    s = Sketch()
    half = s.node("Cast", ["x"], "x_half", to=TensorProto.FLOAT16)
    product = s.node("MatMul", [half, s.dequantize(s.weight(WIDTH, OUTPUTS), 1)], "layer")
    return s.model(product)


def mixed_integers() -> ModelProto:
    s = Sketch()
    x = s.quantize("x", ml_dtypes.float8_e4m3fn)
    return s.model(s.node("MatMul", [x, s.dequantize(s.weight(WIDTH, OUTPUTS), 1)], "layer"))


def float8_on_ampere() -> ModelProto:
    s = Sketch()
    x = s.quantize("x", ml_dtypes.float8_e4m3fn)
    weight = s.hold("w_q", s.weight(WIDTH, OUTPUTS).astype(ml_dtypes.float8_e4m3fn))
    real = s.node("DequantizeLinear", [weight, s.hold("w_scale", np.float32(1.0))], "w_DQ")
    return s.model(s.node("MatMul", [x, real], "layer"))


def int4_on_turing() -> ModelProto:
    s = Sketch()
    return s.model(half(s, "x", s.blocks(128), "layer"))


def float4_on_ada() -> ModelProto:
    """NVFP4 of weights and activations, which compiles for sm120."""
    s = Sketch()
    unit = s.hold("unit", np.float32(0.01))
    quantizer = helper.make_node(
        "TRT_FP4DynamicQuantize",
        ["x", unit],
        ["x_q", "x_codes"],
        name="x_Q",
        domain="trt",
        axis=-1,
        block_size=16,
        scale_type=TensorProto.FLOAT8E4M3FN,
    )
    s.nodes.append(quantizer)
    numbers = s.random.choice([-6.0, -3.0, -1.0, 0.5, 2.0, 4.0], (OUTPUTS, WIDTH))
    s.hold("w_q", numbers.astype(ml_dtypes.float4_e2m1fn))
    s.hold("w_codes", np.ones((OUTPUTS, WIDTH // 16), ml_dtypes.float8_e4m3fn))
    x, weight = (
        s.node(
            "DequantizeLinear",
            [f"{name}_q", s.node("DequantizeLinear", [f"{name}_codes", unit], f"{name}_scales")],
            f"{name}_DQ",
            axis=-1,
            block_size=16,
        )
        for name in "xw"
    )
    columns = s.node("Transpose", [weight], "w_T", perm=[1, 0])
    return s.model(s.node("MatMul", [x, columns], "layer"), opset=23, domains=("trt",))


def qlinear_conv() -> ModelProto:
    s = Sketch()
    scale, zero = s.hold("s", np.float32(0.05)), s.hold("z", np.int8(0))
    integers = s.node("QuantizeLinear", ["x", scale, zero], "x_Q")
    weight = s.hold("w_q", s.random.integers(-127, 128, (64, 64, 3, 3)).astype(np.int8))
    inputs = [integers, scale, zero, weight, scale, zero, scale, zero]
    sums = s.node("QLinearConv", inputs, "layer", pads=[1] * 4)
    return image(s, s.node("DequantizeLinear", [sums, scale, zero], "y_DQ"))


def conv_integer() -> ModelProto:
    """With static integers, so that nothing but ConvInteger can be refused."""
    s = Sketch()
    scale, zero = s.hold("s", np.float32(0.05)), s.hold("z", np.int8(0))
    integers = s.node("QuantizeLinear", ["x", scale, zero], "x_Q")
    weight = s.hold("w_q", s.random.integers(-127, 128, (64, 64, 3, 3)).astype(np.int8))
    sums = s.node("ConvInteger", [integers, weight], "layer", pads=[1] * 4)
    return image(s, s.node("Cast", [sums], "wide", to=TensorProto.FLOAT))


def qlinear() -> ModelProto:
    s = Sketch()
    scale, zero = s.hold("s", np.float32(0.05)), s.hold("z", np.int8(0))
    integers = s.node("QuantizeLinear", ["x", scale, zero], "x_Q")
    weight = s.hold("w_q", s.random.integers(-127, 128, (WIDTH, OUTPUTS)).astype(np.int8))
    product = s.node(
        "QLinearMatMul", [integers, scale, zero, weight, scale, zero, scale, zero], "layer"
    )
    return s.model(s.node("DequantizeLinear", [product, scale, zero], "y_DQ"))


def matmul_integer() -> ModelProto:
    s = Sketch()
    s.nodes.append(
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"], name="x_dynamic")
    )
    weight = s.hold("w_q", s.random.integers(-127, 128, (WIDTH, OUTPUTS)).astype(np.int8))
    sums = s.node("MatMulInteger", ["xq", weight, "xz"], "layer")
    wide = s.node("Cast", [sums], "wide", to=TensorProto.FLOAT)
    return s.model(s.node("Mul", [wide, "xs"], "scaled"))


def matmul_nbits() -> ModelProto:
    s = Sketch()
    packed = s.hold("B", s.random.integers(0, 255, (OUTPUTS, 4, 64)).astype(np.uint8))
    scale = s.hold("S", s.weight(OUTPUTS * 4))
    product = s.node(
        "MatMulNBits",
        ["x", packed, scale],
        "layer",
        domain="com.microsoft",
        K=WIDTH,
        N=OUTPUTS,
        bits=4,
        block_size=128,
    )
    return s.model(product, domains=("com.microsoft",))


REJECTED: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "zero point other than 0": (nonzero_point, "89"),
    "uint8 activations": (unsigned_activation, "89"),
    "int16 activations": (wide_activation, "89"),
    "float8 E5M2": (e5m2_activation, "89"),
    "uint4": (unsigned_blocks, "89"),
    "int32 bias behind DequantizeLinear": (int32_bias, "89"),
    "float16 times float32": (mixed_operands, "89"),
    "float8 activations with an int8 weight": (mixed_integers, "89"),
    "float8 on sm86": (float8_on_ampere, "86"),
    "int4 on sm75": (int4_on_turing, "75"),
    "NVFP4 on sm89": (float4_on_ada, "89"),
    "QLinearMatMul": (qlinear, "89"),
    "QLinearConv": (qlinear_conv, "89"),
    "ConvInteger": (conv_integer, "89"),
    "MatMulInteger": (matmul_integer, "89"),
    "MatMulNBits": (matmul_nbits, "89"),
}
"""Refused by the parser or the builder; for which compute capability."""
