"""Small ONNX models made by hand, node by node."""

from __future__ import annotations

from typing import Any

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


def half(sketch: Sketch, x: str, weight: str, name: str) -> str:
    """A product in float16 between casts, which are named as artifacts name them."""
    narrow = sketch.node("Cast", [x], f"{name}/input", to=TensorProto.FLOAT16)
    product = sketch.node("MatMul", [narrow, weight], name)
    return sketch.node("Cast", [product], f"{name}/output", to=TensorProto.FLOAT)
