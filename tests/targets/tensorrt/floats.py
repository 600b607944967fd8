"""What TensorRT has on every GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto

from tests.targets.tensorrt.sketch import OUTPUTS, ROWS, WIDTH, Sketch, half, image


def float32_product() -> ModelProto:
    s = Sketch()
    weight = s.hold("w", s.weight(WIDTH, OUTPUTS))
    return s.model(s.node("MatMul", ["x", weight], "layer"))


def float16_product(rows: int = ROWS, width: int = WIDTH, outputs: int = OUTPUTS) -> ModelProto:
    s = Sketch()
    weight = s.hold("w", s.weight(width, outputs).astype(np.float16))
    last = half(s, "x", weight, "layer")
    return s.model(last, inputs=[rows, width], outputs=[rows, outputs])


def widened_product(rows: int = ROWS, width: int = WIDTH, outputs: int = OUTPUTS) -> ModelProto:
    """A float32 product behind casts to float16 and back."""
    s = Sketch()
    narrow = s.node("Cast", ["x"], "layer/input", to=TensorProto.FLOAT16)
    wide = s.node("Cast", [narrow], "wide", to=TensorProto.FLOAT)
    last = s.node("MatMul", [wide, s.hold("w", s.weight(width, outputs))], "layer")
    return s.model(last, inputs=[rows, width], outputs=[rows, outputs])


def float32_conv() -> ModelProto:
    s = Sketch()
    weight = s.hold("w", s.weight(64, 64, 3, 3))
    return image(s, s.node("Conv", ["x", weight], "layer", pads=[1] * 4))


def narrow_conv(inputs: int, outputs: int, dtype: Any) -> ModelProto:
    """A convolution of (1, inputs, 28, 28) in int8 or float8 (E4M3)."""
    s = Sketch()
    values = s.weight(outputs, inputs, 3, 3)
    if dtype is np.int8:
        weight = s.dequantize(values, 0)
    else:
        scale = s.hold("w_scale", np.float32(1))
        weight = s.node("DequantizeLinear", [s.hold("w_q", values.astype(dtype)), scale], "w_DQ")
    last = s.node("Conv", [s.quantize("x", dtype), weight], "layer", pads=[1] * 4)
    return s.model(last, inputs=[1, inputs, 28, 28], outputs=[1, outputs, 28, 28])
