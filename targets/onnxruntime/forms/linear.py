"""Linear layers.

| scheme | operator |
|---|---|
| fp32, fp16, w8, w8-g* | MatMul of a weight that becomes float at load |
| w4-g*, w2-g* | MatMulNBits at accuracy level 0: activations stay float |
| w4a8-dynamic-g*, w8a8-dynamic-g* | MatMulNBits at level 4: activations as int8 per block |
| w8a8 | MatMulIntegerToFloat of the input's integers |
| w8a8-dynamic | DynamicQuantizeMatMul |

The operators of ONNX Runtime's own domain are written directly. The portable DequantizeLinear and
MatMul fuse into them only as long as no neighbour is folded into the MatMul first, and session
settings then decide on the accuracy level; here the file says what is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from advisor.errors import UnsupportedError
from advisor.formats import PerBlock
from advisor.targets.manifest import LayerRecord
from advisor.targets.onnxruntime.forms.builder import Builder
from advisor.targets.onnxruntime.forms.form import Call, Form, Found, first_input, integer
from advisor.targets.onnxruntime.forms.weights import (
    array_of,
    constant_array,
    find_float_weight,
    float_weight,
    names_of,
    pack,
    table_of,
    unpack,
)

if TYPE_CHECKING:
    import onnx_ir as ir

BLOCK_BITS: Final = {"int8": 8, "int4": 4, "int2": 2}
INT8_LEVEL: Final = 4
"""Accuracy level of MatMulNBits at which it quantizes activations; at 0 they stay float."""


def write(build: Builder, call: Call) -> tuple[ir.Value, ...]:
    """The layer under its scheme, bias included."""
    scheme = call.scheme
    if scheme.is_static:
        return (_static(build, call),)
    if isinstance(scheme.weight.granularity, PerBlock) and (
        scheme.activation is not None or scheme.weight.dtype != "int8"
    ):
        return (_blocks(build, call),)
    if scheme.activation is not None:
        return (_dynamic(build, call),)
    return (_float(build, call),)


def _float(build: Builder, call: Call) -> ir.Value:
    x, weight = call.inputs[:2]
    real = float_weight(build, call, weight)
    rank = None if x.shape is None else len(x.shape)
    if rank == 2 and call.bias is not None:
        return build.node("Gemm", [x, real, call.bias], role="op", transB=1)
    transposed = build.node("Transpose", [real], role="weight", perm=[1, 0])
    product = build.node("MatMul", [x, transposed], role="op")
    if call.bias is None:
        return product
    return build.node("Add", [product, call.bias], role="output")


def _blocks(build: Builder, call: Call) -> ir.Value:
    table, fmt = call.stored, call.scheme.weight
    assert table.scale is not None  # integers have scales
    assert isinstance(fmt.granularity, PerBlock)
    integers, scales = names_of(call)
    outputs, inputs = call.layer.weight_shape
    bits, block = BLOCK_BITS[fmt.dtype], fmt.granularity.size
    packed = pack(array_of(table.values).reshape(outputs, -1), bits)
    weight = build.constant(
        f"{integers}_blocks", packed.reshape(outputs, inputs // block, block * bits // 8)
    )
    scale = build.constant(scales, array_of(table.scale).reshape(outputs, -1))
    level = 0 if call.scheme.activation is None else INT8_LEVEL
    return build.node(
        "MatMulNBits",
        [call.inputs[0], weight, scale, None, None, call.bias],
        role="op",
        K=inputs,
        N=outputs,
        bits=bits,
        block_size=block,
        accuracy_level=level,
    )


def _static(build: Builder, call: Call) -> ir.Value:
    quantized, step, zero = integers_of(call.layer.name, call.inputs[0])
    weight, scale = _columns(build, call)
    return build.node(
        "MatMulIntegerToFloat",
        [quantized, weight, step, scale, zero, None, call.bias],
        role="op",
    )


def _dynamic(build: Builder, call: Call) -> ir.Value:
    weight, scale = _columns(build, call)
    return build.node(
        "DynamicQuantizeMatMul",
        [call.inputs[0], weight, scale, None, call.bias],
        role="op",
    )


def integers_of(layer: str, value: ir.Value) -> tuple[ir.Value | None, ...]:
    """Integers, scale and zero point of a statically quantized tensor.

    Raises:
        UnsupportedError: the tensor is not quantized.
    """
    producer = value.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        raise UnsupportedError(
            f"{layer} is statically quantized, but its input {value.name} is not; "
            "plan again, or pin the layer to another scheme"
        )
    return tuple(producer.inputs[:3])


def _columns(build: Builder, call: Call) -> tuple[ir.Value, ir.Value]:
    """The integers as (inputs, outputs), and one scale per output.

    A weight that other layers read too is stored as they need it and transposed at load.
    """
    table = call.stored
    assert table.scale is not None  # integers have scales
    integers, scales = names_of(call)
    values = array_of(table.values)
    scale = build.constant(f"{scales}s", array_of(table.scale).reshape(-1))
    if call.is_shared:
        stored = build.constant(integers, values)
        return build.node("Transpose", [stored], role="weight", perm=[1, 0]), scale
    return build.constant(f"{integers}_transposed", values.T), scale


def read(node: ir.Node, layer: LayerRecord) -> Found | None:
    """What ``write`` wrote."""
    if node.op_type == "MatMulNBits":
        return _read_blocks(node)
    if node.op_type in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul"):
        is_static = node.op_type == "MatMulIntegerToFloat"
        values = constant_array(node.inputs[1])
        scale = constant_array(node.inputs[3 if is_static else 2])
        if values is None or scale is None:
            return None
        scheme = "w8a8" if is_static else "w8a8-dynamic"
        return Found(scheme=scheme, table=table_of(values.T, scale))
    if node.op_type in ("MatMul", "Gemm"):
        return find_float_weight(node.inputs[1], layer.weight_shape)
    return None


def _read_blocks(node: ir.Node) -> Found | None:
    packed, scale = constant_array(node.inputs[1]), constant_array(node.inputs[2])
    if packed is None or scale is None:
        return None
    bits, block = integer(node, "bits"), integer(node, "block_size")
    values = unpack(packed.reshape(packed.shape[0], -1), bits)
    is_dynamic = integer(node, "accuracy_level") == INT8_LEVEL
    activation = "a8-dynamic" if is_dynamic else ""
    return Found(scheme=f"w{bits}{activation}-g{block}", table=table_of(values, scale))


def kernels(layer: LayerRecord) -> frozenset[str]:
    """Operators that compute the layer as planned."""
    scheme = layer.scheme
    if scheme == "w8a8":
        return frozenset({"MatMulIntegerToFloat"})
    if scheme == "w8a8-dynamic":
        return frozenset({"DynamicQuantizeMatMul"})
    if "-g" in scheme and ("dynamic" in scheme or not scheme.startswith("w8")):
        return frozenset({"MatMulNBits"})
    return frozenset()


FORM: Final = Form(write=write, read=read, kernels=kernels, start=first_input)
