"""What a file takes and gives: integers instead of floats, channels last instead of the model's.

Both remove operators from the ends of a finished model and change no number inside it. Rounding
and moving elements commute, so that a QUANTIZE may go before what only moves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, Final

import numpy as np

from advisor.errors import UnsupportedError
from advisor.targets.manifest import PortRecord
from advisor.targets.tflite.flatbuffer import FlatModel
from advisor.targets.tflite.integers import FLOATS
from advisor.targets.tflite.options import TfliteOptions
from advisor.targets.tflite.values import TWIN
from advisor.targets.tflite.weights import per_axis

CHANNELS_LAST: Final = (0, 2, 3, 1)
CHANNELS_FIRST: Final = (0, 3, 1, 2)

PASSES: Final = frozenset(
    {"EXPAND_DIMS", "MAX_POOL_2D", "RESHAPE", "SLICE", "SQUEEZE", "STRIDED_SLICE", "TRANSPOSE"}
)
"""Operators that give the same numbers whether their input is rounded before or after."""

UNSIGNED_SHIFT: Final = 128
"""Between int8 and uint8 of the same scale."""


def write_border(model: FlatModel, options: TfliteOptions) -> list[PortRecord]:
    """Give the model the asked ends; what it then takes and gives.

    Raises:
        UnsupportedError: integers were asked for an input or output that the plan leaves in float.
    """
    if options.io != "float":
        _quantize_inputs(model)
        _quantize_outputs(model)
        _drop_dead(model)
    moved = _move_channels(model) if options.layout == "channels_last" else set[tuple[str, str]]()
    if options.io == "uint8":
        _make_unsigned(model)
    return [
        _port(model, kind, entry, CHANNELS_LAST if (kind, _name(entry)) in moved else None)
        for kind, entry in _ends(model)
    ]


def read_ports(model: FlatModel, records: Sequence[PortRecord]) -> list[PortRecord]:
    """What a file takes and gives; the orders of axes are ``records``' own."""
    orders = {(record.kind, record.name): record.order for record in records}
    return [
        _port(model, kind, entry, orders.get((kind, _name(entry)))) for kind, entry in _ends(model)
    ]


def _ends(model: FlatModel) -> list[tuple[str, Any]]:
    """Entries of the signature in the order of the graph's inputs and outputs."""
    places = {"input": list(model.graph.inputs), "output": list(model.graph.outputs)}
    return sorted(
        model.signature(),
        key=lambda each: (each[0], places[each[0]].index(int(each[1].tensorIndex))),
    )


def _name(entry: Any) -> str:
    name: bytes = entry.name
    return name.decode()


def _port(model: FlatModel, kind: str, entry: Any, order: tuple[int, ...] | None) -> PortRecord:
    tensor = int(entry.tensorIndex)
    shape = model.shape(tensor)
    scale, zero_point = _parameters(model, tensor)
    return PortRecord(
        kind=kind,
        name=_name(entry),
        dtype=model.dtype(tensor).lower(),
        shape=shape,
        order=tuple(range(len(shape))) if order is None else order,
        scale=scale,
        zero_point=zero_point,
    )


def _parameters(model: FlatModel, tensor: int) -> tuple[float | None, int]:
    quantization = model.tensor(tensor).quantization
    if quantization is None or quantization.scale is None or not len(quantization.scale):
        return None, 0
    return float(quantization.scale[0]), int(quantization.zeroPoint[0])


def _set_end(model: FlatModel, kind: str, old: int, new: int) -> set[tuple[str, str]]:
    """Let the model take or give tensor ``new`` instead of ``old``; kind and names of the ends."""
    graph = model.graph
    if kind == "input":
        graph.inputs = [new if int(i) == old else int(i) for i in graph.inputs]
    else:
        graph.outputs = [new if int(i) == old else int(i) for i in graph.outputs]
    changed = [e for k, e in model.signature() if k == kind and int(e.tensorIndex) == old]
    for entry in changed:
        entry.tensorIndex = new
    return {(kind, _name(entry)) for entry in changed}


def _floats(model: FlatModel, tensors: Sequence[Any]) -> list[int]:
    return [int(i) for i in dict.fromkeys(map(int, tensors)) if model.dtype(int(i)) == FLOATS]


def _readers(model: FlatModel, tensor: int) -> list[Any]:
    return [operator for operator in model.operators if tensor in map(int, operator.inputs)]


def _quantize_inputs(model: FlatModel) -> None:
    for tensor in _floats(model, model.graph.inputs):
        quantizers = _quantizers(model, tensor)
        parameters = {_parameters(model, int(each.outputs[0])) for each in quantizers}
        if len(parameters) != 1:
            raise _refused_input(model, tensor, len(parameters))
        quantization = model.tensor(int(quantizers[0].outputs[0])).quantization
        _set_end(model, "input", tensor, _integers_of(model, tensor, quantization))


def _quantizers(model: FlatModel, tensor: int) -> list[Any]:
    """The QUANTIZE operators that all readers of a tensor lead to; none where one does not."""
    found: list[Any] = []
    readers = _readers(model, tensor)
    if tensor in map(int, model.graph.outputs) or not readers:
        return []
    for reader in readers:
        code = model.code(reader)
        behind = _quantizers(model, int(reader.outputs[0])) if code in PASSES else []
        if code == "QUANTIZE":
            behind = [reader]
        if not behind:
            return []
        found += behind
    return found


def _integers_of(model: FlatModel, tensor: int, quantization: Any) -> int:
    """The integers to read instead of a float tensor; its QUANTIZE operators go."""
    readers = _readers(model, tensor)
    quantizers = [reader for reader in readers if model.code(reader) == "QUANTIZE"]
    made = int(quantizers[0].outputs[0]) if quantizers else _twin(model, tensor, quantization)
    for reader in readers:
        if reader in quantizers:
            model.operators.remove(reader)
            model.replace_uses(int(reader.outputs[0]), made)
            continue
        reader.inputs = [made if int(i) == tensor else int(i) for i in reader.inputs]
        reader.outputs = [_integers_of(model, int(reader.outputs[0]), quantization)]
    return made


def _quantize_outputs(model: FlatModel) -> None:
    for tensor in _floats(model, model.graph.outputs):
        made = _integers_before(model, tensor)
        if made is None:
            raise _refused_output(model, tensor)
        _set_end(model, "output", tensor, made)


def _integers_before(model: FlatModel, tensor: int) -> int | None:
    """The integers that a float tensor is made of, moved as it is; None when it is computed."""
    maker = model.producers().get(tensor)
    if maker is None:
        return None
    code = model.code(maker)
    if code == "DEQUANTIZE" and not model.is_constant(int(maker.inputs[0])):
        return int(maker.inputs[0])
    if code not in PASSES:
        return None
    source = _integers_before(model, int(maker.inputs[0]))
    if source is None:
        return None
    made = _twin(model, tensor, model.tensor(source).quantization)
    moved = copy(maker)
    moved.inputs, moved.outputs = [source, *map(int, maker.inputs[1:])], [made]
    model.operators.insert(model.operators.index(maker) + 1, moved)
    return made


def _twin(model: FlatModel, tensor: int, quantization: Any) -> int:
    name = f"{model.name(tensor)}{TWIN}"
    return model.add_tensor(name, model.shape(tensor), "INT8", quantization=quantization)


def _drop_dead(model: FlatModel) -> None:
    """Remove operators that nothing reads since the outputs became integers."""
    while True:
        read = {int(i) for op in model.operators for i in op.inputs}
        read |= {int(i) for i in model.graph.outputs}
        alive = [op for op in model.operators if read & set(map(int, op.outputs))]
        if len(alive) == len(model.operators):
            return
        model.graph.operators = alive


def _move_channels(model: FlatModel) -> set[tuple[str, str]]:
    """Take images with the channels last where the file began, or ended, by moving them.

    Returns kind and name of the inputs and outputs that changed.
    """
    changed: set[tuple[str, str]] = set()
    for tensor in dict.fromkeys(map(int, model.graph.inputs)):
        readers = _readers(model, tensor)
        if readers and all(_moves(model, reader, CHANNELS_LAST) for reader in readers):
            first = int(readers[0].outputs[0])
            for reader in readers:
                model.operators.remove(reader)
                model.replace_uses(int(reader.outputs[0]), first)
            changed |= _set_end(model, "input", tensor, first)
    for tensor in dict.fromkeys(map(int, model.graph.outputs)):
        maker = model.producers().get(tensor)
        if maker is not None and _moves(model, maker, CHANNELS_FIRST):
            changed |= _set_end(model, "output", tensor, int(maker.inputs[0]))
    _drop_dead(model)
    return changed


def _moves(model: FlatModel, operator: Any, order: tuple[int, ...]) -> bool:
    """Whether an operator does nothing but move the axes of images.

    Where one of the moved axes has size 1, the converter writes a RESHAPE instead.
    """
    source, made = model.shape(int(operator.inputs[0])), model.shape(int(operator.outputs[0]))
    if len(source) != len(order) or made != tuple(source[axis] for axis in order):
        return False
    if model.code(operator) == "TRANSPOSE":
        data = model.data(int(operator.inputs[1]))
        return data is not None and tuple(np.frombuffer(data, np.int32)) == order
    channels = source[1] if order == CHANNELS_LAST else source[3]
    pixels = int(np.prod(source[1:])) // max(channels, 1)
    return model.code(operator) == "RESHAPE" and 1 in (channels, pixels)


def _make_unsigned(model: FlatModel) -> None:
    """uint8 at the ends, which a QUANTIZE turns into int8 and back."""
    for tensor in dict.fromkeys(map(int, model.graph.inputs)):
        if model.dtype(tensor) == "INT8":
            made = _unsigned(model, tensor)
            model.operators.insert(0, model.make_operator("QUANTIZE", [made], [tensor]))
            _set_end(model, "input", tensor, made)
    for tensor in dict.fromkeys(map(int, model.graph.outputs)):
        if model.dtype(tensor) == "INT8":
            made = _unsigned(model, tensor)
            model.operators.append(model.make_operator("QUANTIZE", [tensor], [made]))
            _set_end(model, "output", tensor, made)


def _unsigned(model: FlatModel, tensor: int) -> int:
    scale, zero_point = _parameters(model, tensor)
    return model.add_tensor(
        f"{model.name(tensor).removesuffix(TWIN)}/uint8",
        model.shape(tensor),
        "UINT8",
        quantization=per_axis(
            np.array([scale], np.float32), axis=0, zero_point=zero_point + UNSIGNED_SHIFT
        ),
    )


def _refused_input(model: FlatModel, tensor: int, kinds: int) -> UnsupportedError:
    name = _signature_name(model, "input", tensor)
    readers = ", ".join(dict.fromkeys(model.code(reader) for reader in _readers(model, tensor)))
    why = (
        f"its readers ({readers or 'none'}) take floats under this plan"
        if not kinds
        else f"its readers take {kinds} different scales"
    )
    return UnsupportedError(
        f"input {name!r} cannot be integers: {why}; plan its readers as w8a8 (pin them, or "
        "schemes=['w8a8']), or compile with io=float"
    )


def _refused_output(model: FlatModel, tensor: int) -> UnsupportedError:
    maker = model.producers().get(tensor)
    code = "no operator" if maker is None else model.code(maker)
    return UnsupportedError(
        f"output {_signature_name(model, 'output', tensor)!r} cannot be integers: {code} computes "
        "it in float under this plan; plan the layer before it as w8a8 and let the model end "
        "there, or compile with io=float"
    )


def _signature_name(model: FlatModel, kind: str, tensor: int) -> str:
    names = [_name(e) for k, e in model.signature() if k == kind and e.tensorIndex == tensor]
    return names[0] if names else model.name(tensor)
