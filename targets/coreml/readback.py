"""What a Core ML package really holds, layer by layer, from the package alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from advisor.formats import scheme_named
from advisor.passes.digest import table_sha256
from advisor.targets.base import LayerFormat
from advisor.targets.coreml.mil import read_weight
from advisor.targets.coreml.mil.constants import type_name
from advisor.targets.coreml.names import inputs_of
from advisor.targets.coreml.package import Package
from advisor.targets.manifest import LayerRecord, TensorRecord
from advisor.targets.storedweight import as_planned, scheme_of, table_of

CUTS: Final = frozenset({"crop", "slice_by_index", "cast"})
"""Operators that coremltools puts behind a layer's own, such as for an output padding."""

DTYPES: Final = {"fp32": "float32", "fp16": "float16"}


def read_layers(package: Package, layers: Iterable[LayerRecord]) -> dict[str, LayerFormat]:
    """The format of every layer that can be found; its kernel is "operator in dtype".

    layers: names, operators and shapes to look for; nothing else of them is trusted.
    """
    formats: dict[str, LayerFormat] = {}
    for layer in layers:
        for op in layer_operators(package, layer):
            found = _read(op, layer)
            if found is not None:
                formats[layer.name] = found
                break
    return formats


def layer_operators(package: Package, layer: LayerRecord) -> list[Any]:
    """The operators that may read a layer's weight: its own, or all where it has no name."""
    chain = own_operators(package, layer)
    if chain:
        return chain[:1]
    weight = package.names.weights.get(layer.weight)
    return [] if weight is None else package.readers(weight)


def own_operators(package: Package, layer: LayerRecord) -> list[Any]:
    """The operator of a layer and those that cut its result to size, in order."""
    name = package.names.layers.get(layer.name)
    op = None if name is None else package.find(name)
    chain: list[Any] = []
    while op is not None:
        chain.insert(0, op)
        op = op.inputs["x"].op if op.op_type in CUTS else None
    return chain


def read_tensors(package: Package, names: Iterable[str]) -> dict[str, tuple[TensorRecord, ...]]:
    """Scale, zero point and dtype of every quantized activation tensor of a name."""
    found: dict[str, tuple[TensorRecord, ...]] = {}
    for name in names:
        ops = [package.find(mil) for mil in package.names.tensors.get(name, ())]
        found[name] = tuple(_read_tensor(name, op) for op in ops if op is not None)
    return found


def _read(op: Any, layer: LayerRecord) -> LayerFormat | None:
    count = 1
    for size in layer.weight_shape:
        count *= size
    for var in inputs_of(op):
        weight = read_weight(var)
        if weight is None or weight.values.numel() != count:
            continue
        # Of two constants as large as the weight it is the one with the plan's numbers.
        table = table_of(weight, layer.weight_shape)
        return LayerFormat(
            scheme=as_planned(scheme_of(weight, is_static=_is_static(op)), layer),
            weight_sha256=table_sha256(table),
            kernel=f"{op.op_type} in {DTYPES.get(type_name(op.outputs[0].dtype), 'no float')}",
        )
    return None


def _is_static(op: Any) -> bool:
    return source_integers(op) is not None and op.op_type != "gather"


def source_integers(op: Any) -> Any | None:
    """The integers that an operator's input was dequantized from; None where it reads floats."""
    var = op.inputs.get("x")
    while var is not None and var.op is not None and var.op.op_type in ("cast", "reshape"):
        var = var.op.inputs["x"]
    if var is None or var.op is None or var.op.op_type != "dequantize":
        return None
    return var.op.inputs["input"]


def _read_tensor(name: str, op: Any) -> TensorRecord:
    zero = op.inputs.get("zero_point")
    return TensorRecord(
        name=name,
        scale=float(op.inputs["scale"].val),
        zero_point=0 if zero is None else int(zero.val),
        dtype=type_name(op.outputs[0].dtype),
    )


def is_static(scheme: str) -> bool:
    """Whether layers under the scheme read static integers."""
    return scheme_named(scheme).is_static
