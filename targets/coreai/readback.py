"""What a Core AI package really holds, layer by layer, from the package alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import Any, Final

from advisor.passes.digest import table_sha256
from advisor.targets.base import LayerFormat
from advisor.targets.coreai.constants import dtype_of, read_constant
from advisor.targets.coreai.program import CONSTANT, Program, owner_of
from advisor.targets.manifest import LayerRecord, TensorRecord
from advisor.targets.parts import Names
from advisor.targets.storedweight import Weight, as_planned, scheme_of, table_of

SCALED: Final = "coreai.blockwise_shift_scale"
LOOKED_UP: Final = "coreai.lut_to_dense"
QUANTIZE: Final = "coreai.quantize"
DEQUANTIZE: Final = "coreai.dequantize"

GATHER: Final = "coreai.gather_nd"
"""What an embedding becomes: rows of its first operand, by numbers in its second."""

MOVES: Final = frozenset(
    {"coreai.reshape", "coreai.expand_dims", "coreai.shrink_dims", "coreai.cast"}
)
"""Operators between a weight and its layer that keep the order of its elements."""

PAD: Final = "coreai.pad"
"""What a convolution does to its input first."""

TURN: Final = "coreai.transpose"


def read_layers(
    package: Program, names: Names, layers: Iterable[LayerRecord]
) -> dict[str, LayerFormat]:
    """The format of every layer that can be found; its kernel is "operator in dtype".

    layers: names and shapes to look for; nothing else of them is trusted.
    """
    formats: dict[str, LayerFormat] = {}
    for layer in layers:
        called = names.layers.get(layer.name)
        ops = package.find(called) if called else []
        found = _read(package, ops, layer) if ops else None
        if found is not None:
            formats[layer.name] = found
    return formats


def read_tensors(
    package: Program, names: Names, tensors: Iterable[str]
) -> dict[str, tuple[TensorRecord, ...]]:
    """Scale, zero point and dtype of every quantized activation tensor of a name."""
    return {
        name: tuple(
            _read_tensor(name, op)
            for called in names.tensors.get(name, ())
            for op in package.find(called)
            if op.name == QUANTIZE
        )
        for name in tensors
    }


def read_weight(value: Any) -> Weight | None:
    """How a constant is stored; None for what is computed while the model runs, or otherwise
    than this package writes."""
    op = owner_of(value)
    while op is not None and op.name in MOVES:
        op = owner_of(op.operands[0])
    if op is None:
        return None
    if op.name == CONSTANT:
        dtype = dtype_of(op.results[0])
        return Weight(values=read_constant(op), dtype=_short(dtype)) if dtype else None
    if op.name == SCALED:
        return _read_scaled(op)
    if op.name == LOOKED_UP:
        return _read_lookup(op)
    if op.name == TURN:  # of a matrix, by a Linear
        turned = read_weight(op.operands[0])
        return turned if turned is not None and turned.values.ndim == 2 else None
    return None


def source_integers(value: Any) -> Any | None:
    """The integers that a value was dequantized from; None where it is a float."""
    op = owner_of(value)
    while op is not None and op.name in {*MOVES, PAD}:
        op = owner_of(op.operands[0])
    return op.operands[0] if op is not None and op.name == DEQUANTIZE else None


def _read(package: Program, ops: list[Any], layer: LayerRecord) -> LayerFormat | None:
    count = prod(layer.weight_shape)
    for op, value in _weights(package, ops):
        weight = read_weight(value)
        if weight is None or weight.values.numel() != count:
            continue
        is_static = any(source_integers(each) is not None for each in op.operands)
        return LayerFormat(
            scheme=as_planned(scheme_of(weight, is_static=is_static), layer),
            weight_sha256=table_sha256(table_of(weight, layer.weight_shape)),
            kernel=f"{_plain(op.name)} in {dtype_of(op.results[0]) or 'no float'}",
        )
    return None


def _plain(name: str) -> str:
    return name.removeprefix("coreai.").removeprefix("decomposable.")


def _weights(package: Program, ops: list[Any]) -> Iterator[tuple[Any, Any]]:
    """The fixed values that operators of a layer read beside one that is not, in order."""
    for op in ops:
        if op.name == GATHER:
            yield op, op.operands[0]
            continue
        fixed = [value for value in op.operands if package.is_fixed(value)]
        if len(fixed) < len(op.operands):
            yield from ((op, value) for value in fixed)


def _read_scaled(op: Any) -> Weight | None:
    data, scale, zero_point, shift = op.operands
    stored, scales, zeros, shifts = (
        read_weight(value) for value in (data, scale, zero_point, shift)
    )
    if stored is None or scales is None or zeros is None or shifts is None:
        return None
    if stored.scale is not None or bool(shifts.values.any()):
        return None  # a chain, or an offset after the scale, neither of which this package writes
    return Weight(
        values=stored.values,
        dtype=stored.dtype,
        scale=scales.values,
        offset=zeros.values if bool(zeros.values.any()) else None,
    )


def _read_lookup(op: Any) -> Weight | None:
    indices, table, _ = op.operands
    stored, entries = read_weight(indices), read_weight(table)
    if stored is None or entries is None or entries.values.shape[-1] != 1:
        return None  # vectors of weights, which this package does not write
    return Weight(
        values=stored.values,
        dtype=stored.dtype,
        table=entries.values[..., 0],
        table_scale=None if entries.scale is None else entries.scale[..., 0],
        table_dtype=entries.dtype,
    )


def _short(dtype: str) -> str:
    """The word for a dtype that stored weights have."""
    return {"float32": "fp32", "float16": "fp16"}.get(dtype, dtype)


def _read_tensor(name: str, op: Any) -> TensorRecord:
    scale, zero_point, shift = (read_weight(value) for value in op.operands[1:4])
    if scale is None or zero_point is None or shift is None or bool(shift.values.any()):
        return TensorRecord(name=name, scale=0.0, zero_point=0, dtype="computed at run time")
    return TensorRecord(
        name=name,
        scale=float(scale.values),
        zero_point=int(zero_point.values),
        dtype=dtype_of(op.results[0]),
    )
