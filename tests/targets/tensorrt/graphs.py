"""Small ONNX models made by hand: what TensorRT takes, and what it rejects or quietly widens."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
WIDTH, OUTPUTS, ROWS = 512, 256, 32
OPSET, IR_VERSION = 21, 10


class Sketch:
    """Nodes and constants that become a model with the input x and the output y."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.random = np.random.default_rng(0)

    def weight(self, *shape: int) -> Array:
        """Random numbers about as large as trained weights."""
        return self.random.normal(0, 0.05, shape).astype(np.float32)

    def hold(self, name: str, array: Any) -> str:
        """A constant in the array's own dtype."""
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def pack(self, name: str, integers: Array, kind: int) -> str:
        """A constant of INT4 or UINT4."""
        nibbles = integers.astype(np.int8).view(np.uint8).reshape(-1, 2) & 15
        raw = (nibbles[:, 0] | (nibbles[:, 1] << 4)).astype(np.uint8).tobytes()
        tensor = helper.make_tensor(name, kind, integers.shape, raw, raw=True)
        self.constants.append(tensor)
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """One node; the name of its output."""
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}:0"], name=name, **attributes))
        return f"{name}:0"

    def quantize(self, x: str, dtype: Any = np.int8, *, zero: int = 0, name: str = "x") -> str:
        """QuantizeLinear and DequantizeLinear of an activation."""
        scale = self.hold(f"{name}_scale", np.float32(0.05))
        point = self.hold(f"{name}_zero", np.array(zero, dtype))
        integers = self.node("QuantizeLinear", [x, scale, point], f"{name}_Q")
        return self.node("DequantizeLinear", [integers, scale, point], f"{name}_DQ")

    def dequantize(self, weight: Array, axis: int | None, name: str = "w") -> str:
        """int8 weights behind DequantizeLinear, with a scale per index of ``axis`` or one."""
        others = tuple(index for index in range(weight.ndim) if index != axis)
        scale = np.abs(weight).max(None if axis is None else others) / 127
        spread = [-1 if index == axis else 1 for index in range(weight.ndim)]
        wide = scale if axis is None else scale.reshape(spread)
        integers = self.hold(f"{name}_q", np.rint(weight / wide).astype(np.int8))
        steps = self.hold(f"{name}_scale", np.asarray(scale, np.float32))
        zeros = self.hold(f"{name}_zero", np.zeros(np.shape(scale), np.int8))
        given = {} if axis is None else {"axis": axis}
        return self.node("DequantizeLinear", [integers, steps, zeros], f"{name}_DQ", **given)

    def blocks(
        self,
        block: int,
        scale_dtype: Any = np.float16,
        kind: int = TensorProto.INT4,
        outputs: int = OUTPUTS,
    ) -> str:
        """Four-bit weights of (outputs, inputs) in blocks of inputs, transposed."""
        integers = self.random.integers(-7, 8, (outputs, WIDTH))
        stored = self.pack("w_q", integers + (8 if kind == TensorProto.UINT4 else 0), kind)
        steps = self.random.uniform(0.005, 0.01, (outputs, WIDTH // block))
        inputs = [stored, self.hold("w_scale", steps.astype(scale_dtype))]
        if kind == TensorProto.UINT4:
            inputs.append(self.pack("w_zero", np.full(steps.shape, 8), kind))
        real = self.node("DequantizeLinear", inputs, "w_DQ", axis=1, block_size=block)
        return self.node("Transpose", [real], "w_T", perm=[1, 0])

    def model(
        self,
        last: str,
        *,
        inputs: list[int | str] | None = None,
        outputs: list[int | str] | None = None,
        opset: int = OPSET,
        domains: tuple[str, ...] = (),
    ) -> ModelProto:
        """The model that ends with the value ``last``."""
        self.nodes.append(helper.make_node("Identity", [last], ["y"], name="end"))
        shapes = inputs or [ROWS, WIDTH], outputs or [ROWS, OUTPUTS]
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shapes[0])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shapes[1])],
            self.constants,
        )
        imports = [helper.make_opsetid("", opset)]
        imports += [helper.make_opsetid(domain, 1) for domain in domains]
        return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)


def image(sketch: Sketch, last: str, outputs: list[int | str] | None = None) -> ModelProto:
    """The model of a convolution of (1, 64, 28, 28)."""
    shape: list[int | str] = [1, 64, 28, 28]
    return sketch.model(last, inputs=shape, outputs=outputs or shape)


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


def half(sketch: Sketch, x: str, weight: str, name: str) -> str:
    """A product in float16 between casts."""
    narrow = sketch.node("Cast", [x], f"{name}_in", to=TensorProto.FLOAT16)
    product = sketch.node("MatMul", [narrow, weight], name)
    return sketch.node("Cast", [product], f"{name}_out", to=TensorProto.FLOAT)


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
    "weight-only int8 read twice": (tied_int8, "89"),
    "weight-only int4 read twice": (tied_int4, "89"),
    "product of int8 and floats": (product_of_int8_and_floats, "89"),
    "weight-only NVFP4": (float4_weight_alone, "120"),
    "MXFP8": (mxfp8, "120"),
}
"""Built without a word, and run in high precision; for which compute capability."""


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
