"""What an ONNX file really holds, layer by layer, from the file alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from advisor.passes.digest import table_sha256
from advisor.passes.graph import WeightTable
from advisor.targets.base import LayerFormat
from advisor.targets.onnxruntime.manifest import LayerRecord, TensorRecord

if TYPE_CHECKING:
    import onnx_ir as ir

_BITS: Final = {"INT8": 8, "INT4": 4, "INT2": 2}
_FLOATS: Final = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A layer's weight as stored. kind: ONNX's name of the dtype. block: 0 for one per row."""

    table: WeightTable
    kind: str
    block: int


def read_layers(model: ir.Model, layers: Iterable[LayerRecord]) -> dict[str, LayerFormat]:
    """The format of every layer that can be found; kernels are left empty.

    layers: names, operators and shapes to look for; nothing else of them is trusted.
    """
    nodes = {str(node.name): node for node in model.graph}
    formats: dict[str, LayerFormat] = {}
    for layer in layers:
        node = nodes.get(layer.name)
        found = _find_weight(node, layer) if node is not None else None
        if found is None:
            found = _find_constant(model, layer)
        if found is None:
            continue
        is_static = node is not None and layer.op != "embedding" and _reads_integers(node)
        formats[layer.name] = LayerFormat(
            scheme=_scheme(found, is_static), weight_sha256=table_sha256(found.table)
        )
    return formats


def read_tensors(model: ir.Model, names: Iterable[str]) -> dict[str, tuple[TensorRecord, ...]]:
    """Scale, zero point and dtype at every QuantizeLinear and DequantizeLinear of a tensor."""
    from advisor.targets.onnxruntime.tidy import NAME_PROPERTY, ROLE_PROPERTY

    found: dict[str, list[TensorRecord]] = {name: [] for name in names}
    for node in model.graph:
        name = node.metadata_props.get(NAME_PROPERTY, "")
        is_static = node.metadata_props.get(ROLE_PROPERTY) in ("quantize", "dequantize")
        if not is_static or name not in found:
            continue
        scale, zero = _array(node.inputs[1]), _array(node.inputs[2])
        if scale is not None and zero is not None:
            found[name].append(
                TensorRecord(
                    name=name,
                    scale=float(scale),
                    zero_point=int(zero),
                    dtype=str(zero.dtype),
                )
            )
    return {name: tuple(records) for name, records in found.items()}


def expected_scheme(layer: LayerRecord) -> str:
    """The scheme to find for a layer: an embedding has no activations to quantize."""
    return "w8" if layer.op == "embedding" and layer.scheme == "w8a8" else layer.scheme


def same_scheme(layer: LayerRecord, found: str) -> bool:
    """Whether ``found`` is the planned scheme; one block per row is one scale per channel.

    A layer of integer weights only that stands behind one that writes integers may read them:
    the numbers are the same, so that is no difference.
    """
    wanted = expected_scheme(layer)
    if layer.reads_integers and "a8" not in wanted:
        found = found.removesuffix("a8")
    inputs = int(np.prod(layer.weight_shape[1:], dtype=np.int64))
    return found == wanted or found == f"{wanted}-g{inputs}" or wanted == f"{found}-g{inputs}"


def _scheme(found: Found, is_static: bool) -> str:
    if found.kind in _FLOATS:
        return _FLOATS[found.kind]
    bits = _BITS.get(found.kind)
    if bits is None:
        return found.kind
    name = f"w{bits}-g{found.block}" if found.block else f"w{bits}"
    return f"{name}a8" if is_static else name


def _find_weight(node: ir.Node, layer: LayerRecord) -> Found | None:
    match node.op_type:
        case "Conv" | "MatMul" | "Gemm":
            return _behind(node, node.inputs[1], layer)
        case "GatherBlockQuantized":
            return _block_quantized(node, layer)
        case "DequantizeLinear":
            return _gathered(node, layer)
        case "Cast":
            gather = node.inputs[0].producer() if node.inputs[0] is not None else None
            return _behind(node, gather.inputs[0], layer) if gather is not None else None
        case "Gather":
            return _behind(node, node.inputs[0], layer)
        case _:
            return None


def _behind(node: ir.Node, value: ir.Value | None, layer: LayerRecord) -> Found | None:
    """Walk from an operator's weight input to the stored constant."""
    is_transposed = layer.op == "linear" and not (
        node.op_type == "Gemm" and _integer(node, "transB")
    )
    dequantize: ir.Node | None = None
    while value is not None and not value.is_initializer():
        producer = value.producer()
        if producer is None:
            return None
        if producer.op_type == "Transpose":
            is_transposed = not is_transposed
        elif producer.op_type == "DequantizeLinear":
            dequantize = producer
        elif producer.op_type not in ("Reshape", "Cast"):
            return None
        value = producer.inputs[0]
    if value is None or value.dtype is None:
        return None
    scale = dequantize.inputs[1] if dequantize is not None else None
    zero = dequantize.inputs[2] if dequantize is not None and len(dequantize.inputs) > 2 else None
    parts = [_torch_layout(part, is_transposed, layer) for part in (value, scale, zero)]
    if parts[0] is None or parts[0].numel() != int(np.prod(layer.weight_shape, dtype=np.int64)):
        return None
    return Found(
        table=WeightTable(
            values=parts[0].reshape(layer.weight_shape), scale=parts[1], zero_point=parts[2]
        ),
        kind=value.dtype.name,
        block=_integer(dequantize, "block_size") if dequantize is not None else 0,
    )


def _torch_layout(
    value: ir.Value | None, is_transposed: bool, layer: LayerRecord
) -> torch.Tensor | None:
    """The constant with outputs first and without padded outputs."""
    array = _array(value)
    if array is None:
        return None
    tensor = torch.as_tensor(array)
    if is_transposed and tensor.ndim == 2:
        tensor = tensor.t()
    return tensor[: layer.weight_shape[0]] if layer.op == "linear" and tensor.ndim else tensor


def _gathered(node: ir.Node, layer: LayerRecord) -> Found | None:
    """An int8 embedding: DequantizeLinear of gathered integers and gathered scales."""
    tables: list[torch.Tensor] = []
    for value in node.inputs[:2]:
        producer = value.producer() if value is not None else None
        if producer is not None and producer.op_type == "Transpose":
            source = producer.inputs[0]
            producer = source.producer() if source is not None else None
        if producer is None or producer.op_type != "Gather":
            return None
        array = _array(producer.inputs[0])
        if array is None:
            return None
        tensor = torch.as_tensor(array)
        tables.append(tensor.t() if _integer(producer, "axis") == 1 else tensor)
    width = layer.weight_shape[1]
    block = _integer(node, "block_size")
    table = WeightTable(values=tables[0], scale=tables[1])
    return Found(table=table, kind="INT8", block=0 if block == width else block)


def _block_quantized(node: ir.Node, layer: LayerRecord) -> Found | None:
    packed, scale = _array(node.inputs[0]), _array(node.inputs[2])
    if packed is None or scale is None or node.inputs[0] is None or node.inputs[0].dtype is None:
        return None
    kind = node.inputs[0].dtype.name
    if _integer(node, "bits") == 2:
        quads = packed[..., None] >> np.array([0, 2, 4, 6], dtype=np.uint8) & 3
        packed = quads.reshape(packed.shape[0], -1).astype(np.int8) - 2
        kind = "INT2"
    values, scales = torch.as_tensor(packed), torch.as_tensor(scale)
    if _integer(node, "gather_axis") == 1:
        values, scales = values.t(), scales.t()
    table = WeightTable(values=values, scale=scales)
    return Found(table=table, kind=kind, block=_integer(node, "block_size"))


def _find_constant(model: ir.Model, layer: LayerRecord) -> Found | None:
    """A weight that no known operator reads (kept float): the constant of its own name."""
    for name in (layer.weight, f"{layer.weight}/constant"):
        value = model.graph.initializers.get(name)
        array = _array(value)
        if value is not None and value.dtype is not None and array is not None:
            table = WeightTable(values=torch.as_tensor(array))
            return Found(table=table, kind=value.dtype.name, block=0)
    return None


def _reads_integers(node: ir.Node) -> bool:
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    if source is None or source.op_type != "DequantizeLinear" or source.inputs[0] is None:
        return False
    quantize = source.inputs[0].producer()
    return quantize is not None and quantize.op_type == "QuantizeLinear"


def _array(value: ir.Value | None) -> np.ndarray[Any, np.dtype[Any]] | None:
    """The constant behind a value, narrow integers as int8."""
    if value is None or value.const_value is None:
        return None
    array = value.const_value.numpy()
    is_narrow = value.dtype is not None and value.dtype.name in ("INT4", "INT2")
    return np.array(array.astype(np.int8) if is_narrow else array)


def _integer(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return 0 if attribute is None else attribute.as_int()
