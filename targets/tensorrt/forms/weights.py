"""How weights are stored, and how a file's are recognised.

| scheme | what is stored | what the operator reads |
|---|---|---|
| fp32, fp16, bf16 | the floats | them |
| w8a8 | int8, a float32 scale per channel, zero points of 0 | DequantizeLinear, float32 |
| w8 | the same | DequantizeLinear, Cast to float16 |
| w4-g64, w4-g128 | int4, a float16 scale per block of inputs | DequantizeLinear, float16 |
| fp8 | float8 (E4M3), a float32 scale per channel | DequantizeLinear, float32 |
| nvfp4 | float4 (E2M1), a float8 scale per block, their unit | DequantizeLinear twice, float32 |

An int4 weight with float32 scales and a Cast behind them is expanded by a kernel of its own, and
the product then runs in float16; an int8 one is not (measured, TensorRT-RTX 1.7.1.116).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from advisor.formats import PerBlock, Scheme
from advisor.passes.graph import WeightTable
from advisor.targets.onnxruntime.forms.builder import Builder
from advisor.targets.onnxruntime.forms.form import Call, integer
from advisor.targets.tensorrt.forms.float4 import BLOCK, read_block_scales, write_float4
from advisor.targets.tensorrt.numbers import (
    ONNX_KINDS,
    Array,
    array_of,
    kind_of,
    stored_array,
    tensor_of,
)

if TYPE_CHECKING:
    import onnx_ir as ir

CASTS: Final = {"FLOAT": 1, "FLOAT16": 10, "BFLOAT16": 16}
"""onnx.TensorProto's numbers."""

VIEWS: Final = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})
"""Operators that the compiler looks through between a DequantizeLinear and a product."""

SCHEMES: Final = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}


def compute_kind(scheme: Scheme) -> str:
    """ONNX's name of the dtype that a layer's operator reads and writes.

    Integer and float8 kernels accumulate in wider numbers and scale in float32, so there the
    tensors stay float32: what a float16 product of dequantized numbers would round, they do not.
    """
    if scheme.activation is not None:
        return "FLOAT"
    if scheme.compute != "float":
        return ONNX_KINDS[scheme.compute]
    return ONNX_KINDS[scheme.weight.dtype] if scheme.weight.is_float else "FLOAT16"


def write_weight(build: Builder, call: Call, weight: ir.Value) -> ir.Value:
    """The layer's weight as its operator reads it, in torch's layout.

    weight: the float32 one that the model has.
    """
    scheme, name = call.scheme, call.layer.weight
    if scheme.weight.dtype == "float32":
        return weight
    table = call.stored
    kind = ONNX_KINDS[scheme.weight.dtype]
    if table.scale is None:
        return build.constant(f"{name}_{scheme.weight.dtype}", array_of(table.values))
    if scheme.weight.dtype == "fp4":
        return write_float4(build, name, table)
    if isinstance(scheme.weight.granularity, PerBlock):
        stored = build.constant(f"{name}_quantized", array_of(table.values), kind)
        steps = build.constant(f"{name}_scale", array_of(table.scale).astype(np.float16))
        size = scheme.weight.granularity.size
        return build.node(
            "DequantizeLinear", [stored, steps], role="weight", axis=1, block_size=size
        )
    values = array_of(table.values)
    scale = array_of(table.scale).reshape(-1)
    stored = build.constant(f"{name}_quantized", values)
    steps = build.constant(f"{name}_scale", scale)
    zeros = build.constant(f"{name}_zero_point", np.zeros(scale.shape, values.dtype))
    real = build.node(
        "DequantizeLinear", [stored, steps, zeros], role="weight", axis=call.layer.scale_axis
    )
    return cast_to(build, real, compute_kind(scheme), role="weight")


def cast_to(build: Builder, value: ir.Value, kind: str, *, role: str) -> ir.Value:
    """The value in another float dtype; itself where that is float32, which everything else is."""
    if kind == "FLOAT":
        return value
    return build.node("Cast", [value], role=role, to=CASTS[kind])


def cast_back(build: Builder, value: ir.Value, kind: str) -> ir.Value:
    """A result in float32 again."""
    return value if kind == "FLOAT" else build.node("Cast", [value], role="output", to=1)


def write_bias(build: Builder, call: Call) -> ir.Value | None:
    """The bias in the dtype that the operator computes in; it is never quantized."""
    kind = compute_kind(call.scheme)
    if call.bias is None or kind == "FLOAT":
        return call.bias
    array = stored_array(call.bias)
    if array is None:
        return cast_to(build, call.bias, kind, role="weight")
    import onnx_ir as ir

    name = f"{call.layer.name}.bias_{kind.lower()}"
    return build.constant(name, array.astype(ir.DataType[kind].numpy()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A weight as a file has it. source: the constant. kind: ONNX's name of the stored dtype.

    block: 0 for none. axis: along which the scales run. views: between the numbers and the
    operator. computes: kind of what the operator reads. dequantized: ONNX's name of what the
    DequantizeLinear gives, "" for a weight without one.
    """

    source: ir.Value
    kind: str
    values: Array
    scale: Array | None
    zero: Array | None
    axis: int
    block: int
    computes: str
    dequantized: str
    views: tuple[str, ...]

    def table(self, shape: Sequence[int]) -> WeightTable:
        """The numbers as plans have them."""
        scale = None if self.scale is None else tensor_of(self.scale.astype(np.float32))
        return WeightTable(values=tensor_of(self.values).reshape(*shape), scale=scale)


def find_weight(value: ir.Value | None) -> Stored | None:
    """The constant behind an operand; None when there is none, or more than storage between."""
    computes, views = kind_of(value), list[str]()
    node: ir.Node | None = None
    while value is not None and not value.is_initializer():
        producer = value.producer()
        if producer is None or (producer.op_type not in VIEWS and producer.op_type != "Cast"):
            node = producer
            break
        views.append(producer.op_type)
        value = producer.inputs[0]
    if node is not None and node.op_type != "DequantizeLinear":
        return None
    source = value if node is None else node.inputs[0]
    values = stored_array(source)
    if source is None or values is None:
        return None
    scale = zero = None
    if node is not None:
        scale = stored_array(node.inputs[1])
        scale = read_block_scales(node.inputs[1]) if scale is None else scale
        zero = stored_array(node.inputs[2]) if len(node.inputs) > 2 else None
        if scale is None:
            return None
    return Stored(
        source=source,
        kind=kind_of(source),
        values=values,
        scale=scale,
        zero=zero,
        axis=1 if node is None or "axis" not in node.attributes else integer(node, "axis"),
        block=0 if node is None else integer(node, "block_size"),
        computes=computes or kind_of(source),
        dequantized="" if scale is None else str(scale.dtype),
        views=tuple(views),
    )


def scheme_of(stored: Stored, activation: str) -> str:
    """The scheme that a stored weight and the dtype of the integers before the operator spell.

    activation: ONNX's name, "" for floats. What no scheme means is spelled out.
    """
    if stored.scale is None:
        name = SCHEMES.get(stored.kind, stored.kind.lower())
        exact = stored.computes == stored.kind and not activation
        return name if exact else f"{name}, computed in {stored.computes.lower()}"
    block = f"-g{stored.block}" if stored.block else ""
    match stored.kind, activation:
        case "INT8", "INT8" if not stored.block:
            return "w8a8"
        case "FLOAT8E4M3FN", "FLOAT8E4M3FN" if not stored.block:
            return "fp8"
        case "FLOAT4E2M1", "FLOAT4E2M1" if stored.block == BLOCK:
            return "nvfp4"
        case "INT8" | "INT4", "":
            return f"w{stored.kind[-1]}{block}"
        case _:
            read = activation.lower() or "float"
            return f"{stored.kind.lower()}{block} weight with {read} activations"
