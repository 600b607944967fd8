"""Hold a file against what TensorRT takes and what it really runs in low precision.

TensorRT builds some files without a word and runs them in high precision, and TensorRT-RTX is laxer
than TensorRT in others; both are rules here. The compiler's own list of kernels is the proof, where
it is installed; this needs nothing but the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from advisor.targets.onnxruntime.forms.form import integer
from advisor.targets.onnxruntime.tidy import NAME_PROPERTY
from advisor.targets.tensorrt.fences import (
    find_chained,
    find_joined,
    find_split,
    find_tied,
    find_turned,
)
from advisor.targets.tensorrt.forms.float4 import DOMAIN, QUANTIZER
from advisor.targets.tensorrt.forms.form import quantized_input
from advisor.targets.tensorrt.forms.weights import Stored, find_weight
from advisor.targets.tensorrt.numbers import kind_of, stored_array

if TYPE_CHECKING:
    import onnx_ir as ir

PRODUCTS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
QUANTIZERS: Final = frozenset({"QuantizeLinear", "DequantizeLinear"})
REFUSED: Final = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
    }
)
"""ONNX operators on integers that TensorRT does not parse."""

KINDS: Final = frozenset({"INT8", "FLOAT8E4M3FN", "INT4", "FLOAT4E2M1"})
INT4_BLOCKS: Final = (64, 128)
OLDEST_OPSET: Final = 21
BFLOAT16_CONV: Final = 22
NEEDS: Final = {"FLOAT8E4M3FN": 89, "FLOAT4E2M1": 100, "INT4": 80, "BFLOAT16": 80}
"""Lowest compute capability with each dtype."""

INT8_PRODUCTS: Final = 80
"""Lowest compute capability whose kernels multiply int8; older ones expand it to float32 (measured,
TensorRT-RTX 1.7.1.116)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One place that breaks a rule. name: the layer or tensor, else the node."""

    name: str
    rule: str
    problem: str


def lint(model: ir.Model, *, sm: str) -> list[Finding]:
    """Every rule that the model breaks. sm: compute capability of the GPU, such as "89"."""
    model = model.clone()
    _fill_in_types(model)
    found: list[Finding] = []
    for node in model.graph:
        name = _name_of(node)
        for check in CHECKS:
            found += [
                Finding(name=name, rule=rule, problem=problem)
                for rule, problem in check(node, int(sm))
            ]
    found += _check_shared(model)
    opset = model.graph.opset_imports.get("", 0)
    if opset < OLDEST_OPSET:
        found.append(
            Finding(
                name="model",
                rule=f"opset {OLDEST_OPSET} or newer, which has int4 and blocks",
                problem=f"opset {opset}",
            )
        )
    convs = [node for node in model.graph if node.op_type in ("Conv", "ConvTranspose")]
    if opset < BFLOAT16_CONV and any(kind_of(node.inputs[0]) == "BFLOAT16" for node in convs):
        found.append(
            Finding(
                name="model",
                rule=f"opset {BFLOAT16_CONV} for convolutions in bfloat16",
                problem=f"opset {opset}",
            )
        )
    return found


def _check_shared(model: ir.Model) -> list[Finding]:
    """Layers whose weight is expanded because of what they share with others."""
    broken: tuple[tuple[list[ir.Node], str, str], ...] = (
        (
            [product for product, _ in find_joined(model)],
            "an operand of its own beside float16 weights",
            "one that both read",
        ),
        (
            find_tied(model),
            "a weight of its own where only the weight is quantized",
            "one of several layers",
        ),
        (
            find_split(model),
            "a result that is read whole, or through a Clip",
            "one read in parts only",
        ),
        (
            find_turned(model),
            "a result that is turned behind a Clip, if at all",
            "one turned right away",
        ),
        (
            [product for product, _ in find_chained(model)],
            "a Clip behind a product of activations",
            "reads such a product right away",
        ),
    )
    return [
        Finding(name=_name_of(node), rule=rule, problem=problem)
        for nodes, rule, problem in broken
        for node in nodes
    ]


def _name_of(node: ir.Node) -> str:
    return node.metadata_props.get(NAME_PROPERTY) or str(node.name)


def _fill_in_types(model: ir.Model) -> None:
    """Floats that the file does not give a dtype, which it need not for what is between nodes.

    onnx's own inference stops where types do not fit, which is one of the things looked for.
    """
    import onnx_ir as ir

    for node in model.graph:
        output = node.outputs[0]
        found: ir.DataType | None = None
        if node.op_type == QUANTIZER:
            node.outputs[0].dtype = ir.DataType.FLOAT4E2M1
            node.outputs[1].dtype = ir.DataType.FLOAT8E4M3FN
        if output.dtype is not None:
            continue
        match node.op_type:
            case "Cast":
                found = ir.DataType(integer(node, "to"))
            case "QuantizeLinear":
                zero = node.inputs[2] if len(node.inputs) > 2 else None
                found = ir.DataType.UINT8 if zero is None else zero.dtype
            case "DequantizeLinear":
                scale = node.inputs[1]
                found = None if scale is None else scale.dtype
            case _:
                read = [value.dtype for value in node.inputs if value is not None]
                floats = [kind for kind in read if kind is not None and kind.is_floating_point()]
                found = floats[0] if floats else None
        if found is not None:
            output.dtype = found


Broken = Iterator[tuple[str, str]]
"""Rules and what is there instead."""


def _check_operator(node: ir.Node, sm: int) -> Broken:
    is_known = not node.domain or (node.domain, node.op_type) == (DOMAIN, QUANTIZER)
    if not is_known or node.op_type in REFUSED:
        domain = f"{node.domain}." if node.domain else ""
        yield "operators of ONNX's own domain, quantized by Q and DQ", f"{domain}{node.op_type}"
    for value in node.outputs:
        needed = NEEDS.get(kind_of(value), 0)
        if sm < needed:
            yield f"sm{needed} or newer for {kind_of(value).lower()}", f"sm{sm}"


def _check_quantizer(node: ir.Node, sm: int) -> Broken:
    if node.op_type not in QUANTIZERS:
        return
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    array = stored_array(zero)
    narrow = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    kind = kind_of(zero) or kind_of(narrow)
    if zero is None and node.op_type == "QuantizeLinear":
        yield "a zero point of 0, whose dtype is that of the integers", "none: uint8"
    elif kind not in KINDS:
        yield f"integers of {', '.join(sorted(KINDS)).lower()}", kind.lower() or "unknown"
    if zero is not None and (array is None or np.any(array.astype(np.float32) != 0)):
        yield "zero points of 0", "another, or one that is computed"
    needed = NEEDS.get(kind, 0)
    if sm < needed:
        yield f"sm{needed} or newer for {kind.lower()}", f"sm{sm}"
    if kind == "INT8" and stored_array(node.inputs[1]) is None:
        yield "constant scales for int8", "a scale that is computed"


def _check_product(node: ir.Node, sm: int) -> Broken:
    if node.op_type not in PRODUCTS:
        return
    yield from _check_types(node)
    yield from _check_hidden(node)
    bias = find_weight(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None and bias.scale is not None:
        yield "a bias in floats", f"a bias of {bias.kind.lower()} behind DequantizeLinear"
    weight = find_weight(node.inputs[1])
    read = quantized_input(node.inputs[0])
    if read == "INT8" and sm < INT8_PRODUCTS:
        yield f"sm{INT8_PRODUCTS} or newer for products of int8", f"sm{sm}"
    if weight is None or weight.scale is None:
        other = quantized_input(node.inputs[1]) if weight is None else ""
        if weight is None and read != other:
            yield (
                "both operands of one dtype",
                f"{read.lower() or 'floats'} and {other.lower() or 'floats'}",
            )
        if read and weight is not None:
            yield f"a weight of {read.lower()} too", "a weight in floats"
        return
    yield from _check_weight(node, weight, read)


def _check_weight(node: ir.Node, weight: Stored, read: str) -> Broken:
    is_conv = node.op_type.startswith("Conv")
    assert weight.scale is not None  # asked by the caller
    if read and read != weight.kind:
        yield f"a weight of {read.lower()} too", f"one of {weight.kind.lower()}"
    if weight.kind == "FLOAT4E2M1" and not read:
        yield "four-bit floats in weights and activations alike", "a quantized weight alone"
    if weight.kind == "INT4" or weight.block:
        yield from _check_blocks(weight, read)
    elif weight.scale.size > 1:
        axis = _axis_at_operator(weight)
        wanted = 0 if node.op_type == "Conv" else 1
        if node.op_type == "Gemm" and integer(node, "transB"):
            wanted = 0
        if axis != wanted:
            yield f"scales along axis {wanted} of the operand of {node.op_type}", f"along {axis}"
    if is_conv and not read:
        yield "convolutions with quantized inputs, or float weights", "a quantized weight alone"
    if node.op_type == "ConvTranspose":
        yield "transposed convolutions in floats", f"a weight of {weight.kind.lower()}"


def _check_blocks(weight: Stored, read: str) -> Broken:
    if weight.kind == "INT8":
        yield "one scale per channel for int8", f"blocks of {weight.block}"
    if weight.kind == "INT4":
        if weight.block not in INT4_BLOCKS:
            blocks = " or ".join(str(size) for size in INT4_BLOCKS)
            yield f"int4 in blocks of {blocks}", f"{weight.block or 'no blocks'}"
        elif weight.values.shape[weight.axis] % weight.block:
            size = weight.values.shape[weight.axis]
            yield "blocks that divide the inputs", f"blocks of {weight.block} in {size}"
        if read:
            yield "int4 for weights whose layer reads floats", f"{read.lower()} activations"
        if weight.dequantized == "float32" and weight.computes != "FLOAT":
            yield "int4 scales in the dtype that the product computes in", "float32 and a Cast"


def _check_types(node: ir.Node) -> Broken:
    kinds = dict.fromkeys(
        kind for value in node.inputs if value is not None and (kind := kind_of(value))
    )
    if len(kinds) > 1:
        yield "operands of one dtype: networks are strongly typed", ", ".join(kinds).lower()


def _check_hidden(node: ir.Node) -> Broken:
    """A DequantizeLinear before an activation function is not seen from the product behind it."""
    value = node.inputs[0]
    producer = None if value is None else value.producer()
    if producer is not None and producer.op_type in ("Relu", "Clip", "LeakyRelu"):
        before = quantized_input(producer.inputs[0])
        if before:
            yield f"QuantizeLinear behind {producer.op_type}", "before it"


def _axis_at_operator(weight: Stored) -> int:
    """The axis of the scales once the views behind the DequantizeLinear are applied."""
    rank = weight.values.ndim
    axis = weight.axis % rank
    flips = sum(view == "Transpose" for view in weight.views)
    return rank - 1 - axis if flips % 2 else axis


CHECKS: Final[tuple[Callable[[ir.Node, int], Broken], ...]] = (
    _check_operator,
    _check_quantizer,
    _check_product,
)
