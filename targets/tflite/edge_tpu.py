"""Which operators of a file an Edge TPU would run, by its documentation: a lint, not its compiler.

Sources: [models-intro] https://coral.ai/docs/edgetpu/models-intro/ (operators and their known
limitations, as of runtime 14; the same table is at https://developer.axis.com/computer-vision/
on-device/system-on-chip/artpec-7/supported-ops/), [compiler]
https://coral.ai/docs/edgetpu/compiler/ (how a model is cut in two), and threads of
https://github.com/google-coral/edgetpu/issues by number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from advisor.targets.tflite.flatbuffer import FlatModel

Test = Callable[[FlatModel, Any], bool]

WEIGHTS_BYTES: Final = 8_000_000
"""On-chip memory that holds weights between runs, roughly [compiler]."""

INNER: Final = 3
"""Dimensions of a tensor that may be larger than 1, counted from the last [models-intro]."""

INTEGERS: Final = frozenset({"INT8", "UINT8"})


@dataclass(frozen=True, slots=True)
class Fate:
    """Where one operator would run. output: name of what it computes. reason: why on the
    processor, "" where the Edge TPU takes it. doubt: a documented limit without a number."""

    operator: str
    output: str
    reason: str = ""
    doubt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lint:
    """What an Edge TPU would run of a file. weights_bytes: of the operators that it takes."""

    operators: tuple[Fate, ...]
    weights_bytes: int

    @property
    def left_out(self) -> tuple[Fate, ...]:
        """The operators that would run on the processor."""
        return tuple(fate for fate in self.operators if fate.reason)

    @property
    def ok(self) -> bool:
        """Whether the Edge TPU would take every operator."""
        return not self.left_out

    def describe(self) -> tuple[str, ...]:
        """The outcome in lines, operators with one reason together."""
        taken = len(self.operators) - len(self.left_out)
        lines = [
            f"Edge TPU: {taken} of {len(self.operators)} operators would run on it, by its "
            "documentation; its compiler, which is not here, has the last word"
        ]
        by_reason: dict[str, list[Fate]] = {}
        for fate in self.left_out:
            by_reason.setdefault(fate.reason, []).append(fate)
        for reason, fates in by_reason.items():
            names = ", ".join(f"{fate.operator} ({fate.output})" for fate in fates[:3])
            more = f" and {len(fates) - 3} more" if len(fates) > 3 else ""
            lines.append(f"on the processor: {names}{more}: {reason}")
        doubts = {fate.operator: fate.doubt for fate in self.operators if fate.doubt}
        lines += [f"in doubt: {operator}: {doubt}" for operator, doubt in doubts.items()]
        if self.weights_bytes > WEIGHTS_BYTES:
            lines.append(
                f"its weights are {self.weights_bytes / 1e6:.1f} MB: what is beyond about "
                f"{WEIGHTS_BYTES / 1e6:.0f} MB is fetched from the host at every run"
            )
        return tuple(lines)


@dataclass(frozen=True, slots=True)
class Limit:
    """A documented limitation. says: what it is. breaks: whether an operator is beyond it."""

    says: str
    breaks: Test


def lint(model: FlatModel) -> Lint:
    """Hold every operator against the documentation, in the order of execution.

    The compiler takes operators up to the first that it cannot; everything behind that stays on
    the processor, whatever it is [compiler]. Only a QUANTIZE of a float input may come before.
    """
    fates: list[Fate] = []
    weights: dict[int, int] = {}
    stop = ""
    inputs = set(map(int, model.graph.inputs))
    for operator in model.operators:
        code, output = model.code(operator), model.name(int(operator.outputs[0]))
        reason = _refusal(model, operator)
        is_entry = code == "QUANTIZE" and int(operator.inputs[0]) in inputs
        if stop and not reason:
            reason = f"behind {stop}, the first one that the Edge TPU does not take"
        elif reason and not stop and not is_entry:
            stop = f"{code} ({output})"
        if not reason:
            weights |= {int(i): _size(model, int(i)) for i in operator.inputs if i >= 0}
        fates.append(Fate(code, output, reason, DOUBTS.get(code, "")))
    return Lint(operators=tuple(fates), weights_bytes=sum(weights.values()))


def _refusal(model: FlatModel, operator: Any) -> str:
    """Why the Edge TPU does not take an operator; "" where it does."""
    code = model.code(operator)
    activations = [int(i) for i in operator.inputs if i >= 0 and not model.is_constant(int(i))]
    activations += map(int, operator.outputs)
    types = {model.dtype(tensor) for tensor in activations} - INTEGERS
    if code in REFUSED:
        return REFUSED[code]
    if types:
        return (
            f"it computes in {', '.join(sorted(types)).lower()}, and the Edge TPU in 8-bit "
            "integers alone: all layers must be w8a8, inputs and outputs io=int8"
        )
    if code not in OPERATORS:
        return "not among the operators of the documentation"
    for tensor in activations:
        shape = model.shape(tensor)
        if any(size > 1 for size in shape[:-INNER]):
            return (
                f"{model.name(tensor)} is {list(shape)}, and only the {INNER} innermost dimensions "
                "may be larger than 1: plan with batch=1"
            )
    return next((limit.says for limit in OPERATORS[code] if limit.breaks(model, operator)), "")


def _size(model: FlatModel, tensor: int) -> int:
    return len(model.data(tensor) or b"")


def _constant(model: FlatModel, tensor: int) -> list[int]:
    """Values of a constant of int32, which axes and paddings are."""
    data = model.data(int(tensor))
    return [] if data is None else [int(value) for value in np.frombuffer(data, np.int32)]


def _shape(model: FlatModel, operator: Any, slot: int = 0) -> tuple[int, ...]:
    return model.shape(int(operator.inputs[slot]))


def _is_fused(model: FlatModel, operator: Any) -> bool:
    return bool(operator.builtinOptions.fusedActivationFunction)


def _is_grouped(model: FlatModel, operator: Any) -> bool:
    return _shape(model, operator)[-1] != _shape(model, operator, 1)[-1]


def _has_two_dilations(model: FlatModel, operator: Any) -> bool:
    options = operator.builtinOptions
    return bool(options.dilationWFactor != options.dilationHFactor)


def _joins_a_constant(model: FlatModel, operator: Any) -> bool:
    constants = [int(i) for i in operator.inputs if model.is_constant(int(i))]
    return bool(constants) and (
        len(operator.inputs) != 2 or any(not _is_zero(model, tensor) for tensor in constants)
    )


def _is_zero(model: FlatModel, tensor: int) -> bool:
    values = np.frombuffer(model.data(tensor) or b"", np.int8)
    return bool((values == model.tensor(tensor).quantization.zeroPoint[0]).all())


def _has_rows(model: FlatModel, operator: Any) -> bool:
    return any(size > 1 for size in model.shape(int(operator.outputs[0]))[:-1])


def _shuffles_weights(model: FlatModel, operator: Any) -> bool:
    return bool(operator.builtinOptions.weightsFormat)


def _axes(model: FlatModel, operator: Any) -> set[int]:
    rank = len(_shape(model, operator))
    return {axis % rank for axis in _constant(model, operator.inputs[1])}


def _reduces_batch(model: FlatModel, operator: Any) -> bool:
    return len(_shape(model, operator)) > INNER and 0 in _axes(model, operator)


def _reduces_odd_depth(model: FlatModel, operator: Any) -> bool:
    shape = _shape(model, operator)
    return len(shape) - 1 in _axes(model, operator) and shape[-1] % 4 != 0


def _pads_batch(model: FlatModel, operator: Any) -> bool:
    return len(_shape(model, operator)) > INNER and any(_constant(model, operator.inputs[1])[:2])


def _packs_batch(model: FlatModel, operator: Any) -> bool:
    return int(operator.builtinOptions.axis) == 0


def _splits_batch(model: FlatModel, operator: Any) -> bool:
    return _constant(model, operator.inputs[0])[:1] == [0]


def _is_long_or_wide(model: FlatModel, operator: Any) -> bool:
    shape = _shape(model, operator)
    return any(size > 1 for size in shape[:-1]) or shape[-1] > 16_000


def _strides(model: FlatModel, operator: Any) -> bool:
    options = operator.builtinOptions
    strides = _constant(model, operator.inputs[3])
    return bool(set(strides) != {1} or options.ellipsisMask or options.newAxisMask)


def _has_many_slopes(model: FlatModel, operator: Any) -> bool:
    return any(size > 1 for size in _shape(model, operator, 1)[:-1])


def _limits(*pairs: tuple[str, Test]) -> tuple[Limit, ...]:
    return tuple(Limit(says, breaks) for says, breaks in pairs)


_PLAIN: Final = ("it has a fused activation function", _is_fused)
_BATCH: Final = ("it reduces over the batch", _reduces_batch)
_DILATION: Final = ("its dilation differs between x and y", _has_two_dilations)

OPERATORS: Final[dict[str, Sequence[Limit]]] = {
    **dict.fromkeys(
        (
            *("ADD", "EXPAND_DIMS", "L2_NORMALIZATION", "LOGISTIC", "MAXIMUM", "MINIMUM", "MUL"),
            *("QUANTIZE", "RELU", "RELU6", "RELU_N1_TO_1", "RESHAPE", "RESIZE_BILINEAR"),
            *("RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SLICE", "SPACE_TO_DEPTH", "SQUEEZE", "SUB"),
            *("SQUARED_DIFFERENCE", "TANH", "TRANSPOSE_CONV", "UNIDIRECTIONAL_SEQUENCE_LSTM"),
        ),
        (),
    ),
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D"), _limits(_PLAIN)),
    **dict.fromkeys(("REDUCE_MAX", "REDUCE_MIN", "SUM"), _limits(_BATCH)),
    "CONCATENATION": _limits(
        _PLAIN, ("it joins a constant that is more than a padding by zeros", _joins_a_constant)
    ),
    "CONV_2D": _limits(
        _DILATION, ("grouped convolutions are not in the documentation", _is_grouped)
    ),
    "DEPTHWISE_CONV_2D": _limits(_DILATION),
    "FULLY_CONNECTED": _limits(
        ("its weights are not in the default format", _shuffles_weights),
        ("its output has more than one row", _has_rows),
    ),
    "MEAN": _limits(
        _BATCH, ("it means over channels whose number is no multiple of 4", _reduces_odd_depth)
    ),
    "PACK": _limits(("it packs along the batch", _packs_batch)),
    "PAD": _limits(("it pads the batch", _pads_batch)),
    "PRELU": _limits(("its slopes are more than one per channel", _has_many_slopes)),
    "SOFTMAX": _limits(("its input is more than one row of 16000", _is_long_or_wide)),
    "SPLIT": _limits(("it splits the batch", _splits_batch)),
    "STRIDED_SLICE": _limits(("its strides are not 1, or it adds axes", _strides)),
}
"""The documented operators with their documented limits [models-intro]."""

REFUSED: Final = {
    "DEQUANTIZE": "it makes floats, which the Edge TPU has not; at an output, compile with io=int8",
    "PADV2": "of paddings only PAD is documented, which pads with zeros",
    "TRANSPOSE": "compiler 14 does not know it, and 16 left it to the processor (issues 242, 433); "
    "at an input or output, compile with layout=channels_last",
}
"""Operators to expect in a file that the Edge TPU does not take, and what to do."""

DOUBTS: Final = {
    "RESHAPE": "of large tensors it may stay on the processor",
    "RESIZE_BILINEAR": "for some sizes it stays on the processor, to keep precision",
    "RESIZE_NEAREST_NEIGHBOR": "for some sizes it stays on the processor, to keep precision",
}
"""Documented limits that name no number [models-intro]."""
