"""What TensorRT has on every GPU."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from tests.targets.tensorrt.sketch import OUTPUTS, WIDTH, Sketch, half, image


def float32_product() -> ModelProto:
    s = Sketch()
    weight = s.hold("w", s.weight(WIDTH, OUTPUTS))
    return s.model(s.node("MatMul", ["x", weight], "layer"))


def float16_product() -> ModelProto:
    s = Sketch()
    weight = s.hold("w", s.weight(WIDTH, OUTPUTS).astype(np.float16))
    return s.model(half(s, "x", weight, "layer"))


def float32_conv() -> ModelProto:
    s = Sketch()
    weight = s.hold("w", s.weight(64, 64, 3, 3))
    return image(s, s.node("Conv", ["x", weight], "layer", pads=[1] * 4))
