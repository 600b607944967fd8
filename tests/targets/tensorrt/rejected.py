"""What TensorRT's parser or builder refuses."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
from onnx import ModelProto, TensorProto, helper

from tests.targets.tensorrt.sketch import OUTPUTS, WIDTH, Sketch


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
    "QLinearMatMul": (qlinear, "89"),
    "MatMulInteger": (matmul_integer, "89"),
    "MatMulNBits": (matmul_nbits, "89"),
}
"""Refused by the parser or the builder; for which compute capability."""
