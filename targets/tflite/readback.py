"""What a TFLite file really holds, layer by layer, from the file alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import permutations
from typing import Any, Final

from advisor.passes.digest import table_sha256
from advisor.targets.base import LayerFormat
from advisor.targets.manifest import LayerRecord, TensorRecord
from advisor.targets.tflite.flatbuffer import FlatModel
from advisor.targets.tflite.skeleton import DEPTHWISE_AT, LAYOUTS, segment
from advisor.targets.tflite.values import Values, read_values
from advisor.targets.tflite.weights import BITS, FLOAT_SCHEMES, Stored, read_weight

EMBEDDING: Final = "EMBEDDING_LOOKUP"


def read_layers(model: FlatModel, layers: Iterable[LayerRecord]) -> dict[str, LayerFormat]:
    """The format of every layer that can be found; kernels are left empty.

    layers: names, operators and shapes to look for; nothing else of them is trusted.
    """
    formats: dict[str, LayerFormat] = {}
    values = read_values(model)
    for layer in layers:
        for operator, tensor in _readers(model, values, layer):
            found = _read(model, layer, operator, tensor)
            if found is not None:
                formats[layer.name] = found
                break
    return formats


def read_tensors(model: FlatModel, names: Iterable[str]) -> dict[str, tuple[TensorRecord, ...]]:
    """Scale, zero point and dtype of every quantized activation tensor of a name."""
    found: dict[str, tuple[TensorRecord, ...]] = {}
    values = read_values(model)
    for name in names:
        twin = values.tensor(name, integers=True)
        quantization = None if twin is None else model.tensor(twin).quantization
        if twin is None or quantization is None:
            continue
        found[name] = (
            TensorRecord(
                name=name,
                scale=float(quantization.scale[0]),
                zero_point=int(quantization.zeroPoint[0]),
                dtype=model.dtype(twin).lower(),
            ),
        )
    return found


def layer_operators(model: FlatModel, values: Values, node: str) -> list[Any]:
    """The operators that compute a layer, from the values it reads to the one it ends in."""
    end = values.ends.get(node, "")
    for integers in (True, False):
        tensor = values.tensor(end, integers=integers)
        if tensor is not None:
            found = [model.operators[i] for i in sorted(segment(model, tensor, values.stops()))]
            if any(model.code(operator) != "QUANTIZE" for operator in found):
                return found
    return []


def _readers(model: FlatModel, values: Values, layer: LayerRecord) -> Iterator[tuple[Any, int]]:
    """Operators that read the layer's weight, and the tensor they read.

    Of a layer whose end is known only its own, else any: tied weights have several readers.
    """
    weights = {index for name, index in values.indices.items() if name == layer.weight}
    floats = {
        int(out)
        for operator in model.operators
        if model.code(operator) == "DEQUANTIZE" and int(operator.inputs[0]) in weights
        for out in operator.outputs
    }
    own = layer_operators(model, values, layer.node)
    for operator in own or model.operators:
        if model.code(operator) == "DEQUANTIZE":
            continue
        for tensor in operator.inputs:
            if int(tensor) in weights | floats:
                yield operator, int(tensor)


def _read(model: FlatModel, layer: LayerRecord, operator: Any, tensor: int) -> LayerFormat | None:
    code = model.code(operator)
    found: LayerFormat | None = None
    for order in _orders(layer, code):
        stored = read_weight(model, tensor, layer.weight_shape, order)
        if stored is None or stored.table.values.numel() == 0:
            return None
        digest = table_sha256(stored.table)
        if found is None or digest == layer.weight_sha256:
            scheme = _scheme(model, operator, tensor, stored)
            found = LayerFormat(scheme=scheme, weight_sha256=digest)
    return found


def _orders(layer: LayerRecord, code: str) -> list[tuple[int, ...]]:
    """Axes in which the operator may keep the weight; any for an operator that is not known."""
    orders = LAYOUTS.get(layer.op)
    if orders is None:
        return list(permutations(range(len(layer.weight_shape))))
    is_depthwise = code == "DEPTHWISE_CONV_2D" and len(orders) > DEPTHWISE_AT
    return [orders[DEPTHWISE_AT if is_depthwise else 0]]


def _scheme(model: FlatModel, operator: Any, tensor: int, stored: Stored) -> str:
    if stored.dtype in FLOAT_SCHEMES:
        return FLOAT_SCHEMES[stored.dtype]
    blocks = f"-g{stored.block}" if stored.block else ""
    weight = f"w{BITS[stored.dtype]}"
    if not model.is_constant(tensor) or model.code(operator) == EMBEDDING:
        return f"{weight}{blocks}"
    slot = 2 if model.code(operator) == "TRANSPOSE_CONV" else 0
    activations = {model.dtype(int(operator.inputs[slot]))}
    return f"{weight}a8{blocks}" if activations == {"INT8"} else f"{weight}a8-dynamic{blocks}"
