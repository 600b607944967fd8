"""Statically quantized activations: which operators run on int8, and QUANTIZE, DEQUANTIZE between.

A tensor that the plan quantizes gets a twin of int8 beside it. Operators between quantized tensors
read and write twins; where an operator reads floats of an integer tensor, or integers of a float
one, the conversion is written once, just before the first reader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from advisor.errors import UnsupportedError
from advisor.formats import scheme_named
from advisor.passes.graph import ActivationParams, Layer, QuantizedGraph
from advisor.passes.layers import find_calls
from advisor.targets.capability import load_capability
from advisor.targets.tflite.flatbuffer import FlatModel, schema
from advisor.targets.tflite.markers import end_of, fused_operators, sources_of
from advisor.targets.tflite.skeleton import Skeleton, segment
from advisor.targets.tflite.values import TWIN
from advisor.targets.tflite.weights import per_axis
from advisor.targets.uses import find_uses

MOVES: Final = frozenset(
    {
        "AVERAGE_POOL_2D",
        "CONCATENATION",
        "EXPAND_DIMS",
        "MAX_POOL_2D",
        "PAD",
        "PADV2",
        "RESHAPE",
        "SLICE",
        "SQUEEZE",
        "STRIDED_SLICE",
        "TRANSPOSE",
    }
)
"""Operators whose output has the scale and zero point of its inputs."""

CLAMPS: Final = frozenset({"MAXIMUM", "MINIMUM", "RELU", "RELU6", "RELU_N1_TO_1"})
"""Activation functions that the converter did not fuse. Rounding is monotone, so that clamping
before it or after it gives the same integers."""

COMPUTES: Final = frozenset({"ADD", "LOGISTIC", "MEAN", "MUL", "SUB", "TANH"})
"""Operators whose output has a scale of its own."""

FIXED: Final = {"LOGISTIC": "sigmoid", "TANH": "tanh"}
"""Operators that write one scale only, by what the runtime's rules call them."""

SUMS: Final = frozenset({"ADD", "SUB"})

FINEST: Final = 2.0**19
"""Steps of a sum that the step of what is added may be. Beyond, LiteRT's kernel ends the process
(the output multiplier of PrepareGeneralSubOp and of add.cc must be below 1, at a shift of 20)."""

HARD_SIGMOID: Final = ("ADD", "MUL")
"""How the converter writes min(max(x + 3, 0), 6) / 6; the first clamps."""

SIX: Final = 6.0

FLOATS: Final = "FLOAT32"

LARGEST: Final = 127
"""Largest int8: a constant that it stands for is exact."""

Params = ActivationParams


@dataclass(slots=True)
class Assigned:
    """What runs in integers. reads, writes: by (operator's id, tensor) its parameters.

    quantized: by tensor, those that every reader sees rounded.
    """

    reads: dict[tuple[int, int], Params] = field(default_factory=dict[tuple[int, int], Params])
    writes: dict[tuple[int, int], Params] = field(default_factory=dict[tuple[int, int], Params])
    quantized: dict[int, Params] = field(default_factory=dict[int, Params])


def write_integers(
    model: FlatModel, graph: QuantizedGraph, skeleton: Skeleton, operators: Sequence[Any]
) -> None:
    """Quantize the activations that the plan quantizes.

    operators: those of the skeleton, by the indices that it has for them.

    Raises:
        UnsupportedError: a static layer has an operator in it that has no integer form.
    """
    assigned = _assign(model, graph, skeleton, operators)
    if assigned.reads or assigned.quantized:
        _Writer(model, assigned).write()


def _assign(
    model: FlatModel, graph: QuantizedGraph, skeleton: Skeleton, operators: Sequence[Any]
) -> Assigned:
    source = graph.float_graph
    uses = find_uses(graph.module)
    assigned = Assigned()
    ends: dict[int, Params] = {}
    for use in uses.values():
        tensor = skeleton.values[use.node].tensor
        if use.readers is None:
            assigned.quantized[tensor] = ends[tensor] = use.params
    stops = {value.tensor for value in skeleton.values.values()}
    calls = find_calls(source.module, source.layers)
    fused = fused_operators()
    for layer in source.layers:
        is_static = scheme_named(graph.assignment[layer.name].scheme).is_static
        if not is_static or layer.op == "embedding":  # token ids are integers as they are
            continue
        end = skeleton.values[end_of(calls[layer.name], fused).name].tensor
        main = operators[skeleton.places[layer.name].operator]
        inside = _inside(model, end, stops)
        # What a layer reads may be constant, such as a learned query.
        own = [skeleton.values[source.name].tensor for source in sources_of(calls[layer.name])]
        reads = [*own, *_float_inputs(model, inside)]
        inputs = dict.fromkeys(reads, graph.activations[layer.input])
        problem = _assign_segment(model, inside, inputs, ends.pop(end), main, assigned)
        if problem:
            raise _refused(layer, problem)
    for end, params in ends.items():
        inside = _inside(model, end, stops)
        read = _float_inputs(model, inside)
        if inside and read and all(tensor in assigned.quantized for tensor in read):
            known = {tensor: assigned.quantized[tensor] for tensor in read}
            _assign_segment(model, inside, known, params, None, assigned)
    return assigned


def _inside(model: FlatModel, end: int, stops: set[int]) -> list[Any]:
    """The operators between marked values that compute ``end``, but no DEQUANTIZE of a weight."""
    found = [model.operators[index] for index in sorted(segment(model, end, stops))]
    return [op for op in found if model.code(op) != "DEQUANTIZE"]


def _float_inputs(model: FlatModel, inside: Sequence[Any]) -> list[int]:
    """The float activations that a group of operators reads from outside."""
    made = {int(out) for op in inside for out in op.outputs}
    return list(
        dict.fromkeys(
            int(i)
            for op in inside
            for i in op.inputs
            if i >= 0
            and int(i) not in made
            and model.dtype(int(i)) == FLOATS
            and not model.is_constant(int(i))
        )
    )


def _assign_segment(
    model: FlatModel,
    inside: Sequence[Any],
    inputs: Mapping[int, Params],
    end: Params,
    main: Any,
    assigned: Assigned,
) -> str:
    """Let a group of operators run in integers, or say which one cannot."""
    if _is_hard_sigmoid(model, inside):
        _assign_hard_sigmoid(model, inside, inputs, end, assigned)
        return ""
    params = dict(inputs)
    reads: dict[tuple[int, int], Params] = {}
    writes: dict[tuple[int, int], Params] = {}
    computed = False
    for operator in inside:
        code = model.code(operator)
        given = [int(i) for i in operator.inputs if i >= 0 and model.dtype(int(i)) == FLOATS]
        sources = [i for i in given if i in params or not model.is_constant(i)]
        constants = [i for i in given if i not in sources]
        found = {params[source] for source in sources}
        if operator is main:
            made, computed = end, True
        elif code in MOVES and len(found) == 1 and (not constants or code == "PADV2"):
            (made,) = found
        elif code in CLAMPS and computed:
            made = end
        elif code in COMPUTES and not computed and not constants and _can_write(code, found, end):
            made, computed = end, True
        else:
            return code
        reads |= {(id(operator), source): params[source] for source in sources}
        writes |= {(id(operator), int(out)): made for out in operator.outputs}
        params |= {int(out): made for out in operator.outputs}
    last = params[int(inside[-1].outputs[0])] if inside else end
    if last != end:
        return model.code(inside[-1])
    assigned.reads |= reads
    assigned.writes |= writes
    return ""


def _can_write(code: str, read: set[Params], written: Params) -> bool:
    """Whether an operator's kernel takes these scales."""
    if code in FIXED:
        return _fixed(code, written.dtype) == written
    return code not in SUMS or max(each.scale for each in read) < FINEST * written.scale


def _fixed(code: str, dtype: str) -> Params | None:
    rules = load_capability("tflite").static
    found = None if rules is None else rules.fixed_output(FIXED[code])
    return None if found is None else found.params(dtype)


def _is_hard_sigmoid(model: FlatModel, inside: Sequence[Any]) -> bool:
    if tuple(model.code(operator) for operator in inside) != HARD_SIGMOID:
        return False
    first, last = inside
    relu6 = schema().ActivationFunctionType.RELU6
    values = [_constants(model, operator) for operator in inside]
    return (
        first.builtinOptions.fusedActivationFunction == relu6
        and [len(each) for each in values] == [1, 1]
        and [_floats(model, each[0]).tolist() for each in values]
        == [[np.float32(SIX / 2)], [np.float32(1 / SIX)]]
        and int(first.outputs[0]) in map(int, last.inputs)
    )


def _assign_hard_sigmoid(
    model: FlatModel,
    inside: Sequence[Any],
    inputs: Mapping[int, Params],
    end: Params,
    assigned: Assigned,
) -> None:
    """The sum has six times the steps of the result, whose integers are then the same."""
    first, last = inside
    between = int(first.outputs[0])
    sixfold = replace(end, scale=SIX * end.scale)
    for operator in inside:
        for constant in _constants(model, operator):
            (value,) = _floats(model, constant).tolist()
            exact = Params(scale=value / LARGEST, zero_point=0, dtype=end.dtype)
            assigned.reads[id(operator), constant] = exact
    assigned.reads |= {
        (id(first), int(i)): inputs[int(i)] for i in first.inputs if int(i) in inputs
    }
    assigned.writes[id(first), between] = assigned.reads[id(last), between] = sixfold
    assigned.writes[id(last), int(last.outputs[0])] = end


def _constants(model: FlatModel, operator: Any) -> list[int]:
    return [int(i) for i in operator.inputs if i >= 0 and model.is_constant(int(i))]


def _floats(model: FlatModel, constant: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.frombuffer(model.data(constant) or b"", np.float32)


class _Writer:
    """Walks the operators once and gives each the tensors it reads and writes."""

    def __init__(self, model: FlatModel, assigned: Assigned) -> None:
        self.model = model
        self.assigned = assigned
        self.done: list[Any] = []
        self.twins: dict[tuple[int, Params], int] = {}
        self.integers: dict[int, Params] = {}
        self.floats: dict[int, int] = {}

    def write(self) -> None:
        """Rewrite the graph's operators and outputs."""
        model = self.model
        for operator in list(model.operators):
            keys = {int(out): (id(operator), int(out)) for out in operator.outputs}
            is_integer = any(key in self.assigned.writes for key in keys.values())
            operator.inputs = [self._input(operator, int(i), is_integer) for i in operator.inputs]
            if is_integer:
                operator.outputs = [
                    self._output(out, self.assigned.writes[key]) for out, key in keys.items()
                ]
                self._pad_plainly(operator)
            self.done.append(operator)
        outputs = [self._float(int(out)) for out in model.graph.outputs]
        renamed = dict(zip((int(o) for o in model.graph.outputs), outputs, strict=True))
        for kind, entry in model.signature():
            if kind == "output":
                entry.tensorIndex = renamed[int(entry.tensorIndex)]
        model.graph.outputs = outputs
        model.graph.operators = self.done

    def _input(self, operator: Any, tensor: int, is_integer: bool) -> int:
        if tensor < 0:
            return tensor
        params = self.assigned.reads.get((id(operator), tensor))
        if params is not None:
            return self._twin_of(tensor, params)
        if is_integer and self.model.is_constant(tensor) and self.model.dtype(tensor) == FLOATS:
            (params,) = {self.assigned.writes[id(operator), int(o)] for o in operator.outputs}
            return self._constant(tensor, params)
        return self._float(tensor)

    def _output(self, tensor: int, params: Params) -> int:
        self.integers[tensor] = params
        return self._twin(tensor, params)

    def _twin(self, tensor: int, params: Params) -> int:
        key = (tensor, params)
        if key not in self.twins:
            name = f"{self.model.name(tensor)}{TWIN}"
            self.twins[key] = self.model.add_tensor(
                name,
                self.model.shape(tensor),
                params.dtype.upper(),
                quantization=per_axis(
                    np.array([params.scale], np.float32), axis=0, zero_point=params.zero_point
                ),
            )
        return self.twins[key]

    def _twin_of(self, tensor: int, params: Params) -> int:
        """The int8 twin of a tensor, quantized here where no operator wrote it, or at once."""
        is_new = (tensor, params) not in self.twins
        if is_new and self.model.is_constant(tensor):
            self.twins[tensor, params] = self._constant(tensor, params)
            return self.twins[tensor, params]
        twin = self._twin(tensor, params)
        if is_new:
            self.done.append(self.model.make_operator("QUANTIZE", [tensor], [twin]))
        return twin

    def _float(self, tensor: int) -> int:
        """The tensor to read for floats: rounded ones where the plan says so."""
        params = self.integers.get(tensor)
        if params is not None:
            self._dequantize(tensor, self.twins[tensor, params], tensor)
        elif tensor in self.assigned.quantized and tensor not in self.floats:
            name = f"{self.model.name(tensor)}/rounded"
            made = self.model.add_tensor(name, self.model.shape(tensor), FLOATS)
            twin = self._twin_of(tensor, self.assigned.quantized[tensor])
            self._dequantize(tensor, twin, made)
        return self.floats.get(tensor, tensor)

    def _dequantize(self, tensor: int, twin: int, floats: int) -> None:
        if tensor not in self.floats:
            self.floats[tensor] = floats
            self.done.append(self.model.make_operator("DEQUANTIZE", [twin], [floats]))

    def _constant(self, tensor: int, params: Params) -> int:
        """A constant in the integers of ``params``: what is padded with or clamped to, or read."""
        low, high = np.iinfo(params.dtype).min, np.iinfo(params.dtype).max
        real = _floats(self.model, tensor).astype(np.float64) / params.scale
        integers = np.clip(np.rint(real) + params.zero_point, low, high).astype(params.dtype)
        scale = np.array([params.scale], np.float32)
        return self.model.add_tensor(
            f"{self.model.name(tensor)}/{params.dtype}",
            self.model.shape(tensor),
            params.dtype.upper(),
            data=integers.tobytes(),
            quantization=per_axis(scale, axis=0, zero_point=params.zero_point),
        )

    def _pad_plainly(self, operator: Any) -> None:
        """Write a PADV2 that pads with zeros as a PAD."""
        if self.model.code(operator) == "PADV2" and self._pads_zeros(operator):
            operator.inputs = operator.inputs[:2]
            operator.builtinOptionsType = schema().BuiltinOptions.PadOptions
            operator.builtinOptions = schema().PadOptionsT()
            self.model.set_code(operator, "PAD")

    def _pads_zeros(self, operator: Any) -> bool:
        """Whether what a PADV2 pads with is the zero point, as a PAD does, which more devices run.

        Minus infinity is, in the integers of what comes out of a ReLU.
        """
        padding = int(operator.inputs[2])
        data, quantization = self.model.data(padding), self.model.tensor(padding).quantization
        return data == np.int8(quantization.zeroPoint[0]).tobytes()


def _refused(layer: Layer, code: str) -> UnsupportedError:
    return UnsupportedError(
        f"{layer.name}: litert-torch writes it with {code}, which has no integer form here, so it "
        "cannot be w8a8; pin it to another scheme"
    )
