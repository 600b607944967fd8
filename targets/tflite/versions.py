"""Versions of the operators in a file: the oldest that has what an operator does.

An older LiteRT refuses a file by them. The conditions are those of ``GetBuiltinOperatorVersion`` in
tflite/tools/versioning/op_version.cc of LiteRT (tensorflow/lite/tools/versioning/op_version.cc of
TensorFlow), and what counts as one scale per channel is that of op_signature.cc beside it.
Operators that are not listed here keep the version that the converter gave them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from advisor.targets.tflite.flatbuffer import FlatModel

FLOAT, INT8, INT4 = "FLOAT32", "INT8", "INT4"

Types = tuple[str, str, str]
"""Of the activation, the weight and the output of a layer."""

BY_TYPE: Final[Mapping[str, Mapping[str, int]]] = {
    "ADD": {INT8: 2, "INT64": 4},
    "AVERAGE_POOL_2D": {INT8: 2},
    "CONCATENATION": {INT8: 2},
    "EXPAND_DIMS": {},
    "LOGISTIC": {INT8: 2},
    "MAXIMUM": {INT8: 2},
    "MAX_POOL_2D": {INT8: 2},
    "MEAN": {INT8: 2},
    "MINIMUM": {INT8: 2},
    "MUL": {INT8: 2, "INT64": 5},
    "PAD": {INT8: 2, "BOOL": 5},
    "PADV2": {INT8: 2, "BOOL": 5},
    "RELU": {INT8: 2, "UINT8": 2},
    "RELU6": {INT8: 2},
    "RELU_N1_TO_1": {},
    "RESHAPE": {},
    "SLICE": {INT8: 2},
    "SQUEEZE": {},
    "STRIDED_SLICE": {INT8: 2, "BOOL": 3},
    "SUB": {INT8: 2, "INT64": 4},
    "TANH": {INT8: 2},
    "TRANSPOSE": {INT8: 2, "BOOL": 3},
}
"""By operator and the type of its first input, where that needs more than version 1."""

BY_RANK: Final = {"PAD": 4, "PADV2": 4, "SLICE": 5, "STRIDED_SLICE": 4, "TRANSPOSE": 4}
"""By operator, for a first input of more than four axes."""

BY_BROADCAST: Final = {"MAXIMUM": 3, "MINIMUM": 3, "SUB": 3}
"""By operator, for inputs of different shapes of which one has more than four axes."""

FEW_AXES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One operator: types of what it reads ("" where it reads nothing) and writes, its options."""

    model: FlatModel
    operator: Any
    code: str
    reads: tuple[str, ...]
    writes: str

    @property
    def options(self) -> Any:
        """The operator's options by their names in the schema; None where it has none."""
        return self.operator.builtinOptions

    def shape(self, slot: int) -> tuple[int, ...]:
        """Shape of an input."""
        return self.model.shape(int(self.operator.inputs[slot]))

    def is_per_channel(self, slot: int, axis: int) -> bool:
        """Whether an input has one scale for every index of ``axis``."""
        return len(self.scales(int(self.operator.inputs[slot]))) == self.shape(slot)[axis]

    def scales(self, tensor: int) -> tuple[float, ...]:
        """The scales that a tensor has of its own."""
        quantization = self.model.tensor(tensor).quantization
        found = None if quantization is None else quantization.scale
        return () if found is None else tuple(float(value) for value in found)

    @property
    def arithmetic(self) -> Types:
        """Types of the activation, the weight and the output of a layer."""
        return self.reads[0], self.reads[1], self.writes


HYBRID: Final[Types] = (FLOAT, INT8, FLOAT)
STATIC: Final[Types] = (INT8, INT8, INT8)
STATIC_4: Final[Types] = (INT8, INT4, INT8)
CONV_VERSIONS: Final[Mapping[Types, int]] = {STATIC: 3, STATIC_4: 7}
DENSE_VERSIONS: Final[Mapping[Types, int]] = {STATIC: 4, STATIC_4: 10}


def set_versions(model: FlatModel) -> None:
    """Give every kind of operator the oldest version that has all that its operators do."""
    wanted: dict[int, int] = {}
    for operator in model.operators:
        version = version_of(model, operator)
        if version is not None:
            kind = int(operator.opcodeIndex)
            wanted[kind] = max(wanted.get(kind, 1), version)
    for kind, version in wanted.items():
        model.tree.operatorCodes[kind].version = version


def version_of(model: FlatModel, operator: Any) -> int | None:
    """The version that an operator needs; None where this page has no rule for its kind."""
    code = model.code(operator)
    form = Form(
        model=model,
        operator=operator,
        code=code,
        reads=tuple(model.dtype(int(i)) if i >= 0 else "" for i in operator.inputs),
        writes=model.dtype(int(operator.outputs[0])),
    )
    if code in RULES:
        return RULES[code](form)
    return _moves_or_counts(form) if code in BY_TYPE else None


def _moves_or_counts(form: Form) -> int:
    """Operators without weights. Every condition asks for more than those before it did."""
    code, rank = form.code, len(form.shape(0))
    found = BY_TYPE[code].get(form.reads[0], 1)
    if rank > FEW_AXES:
        found = max(found, BY_RANK.get(code, 1))
    if code == "TRANSPOSE" and rank > FEW_AXES + 1:
        found = 6
    if code in BY_BROADCAST and form.shape(0) != form.shape(1):
        widest = max(rank, len(form.shape(1)))
        found = max(found, BY_BROADCAST[code] if widest > FEW_AXES else 1)
    if code == "MUL" and found < 3 and _rescales_up(form):
        found = 3
    if code == "STRIDED_SLICE" and form.options is not None:
        if form.options.ellipsisMask or form.options.newAxisMask:
            found = 6
        if form.options.offset:
            found = 8
    return found


def _rescales_up(form: Form) -> bool:
    """Whether a product of integers grows when it is brought to the scale of the output."""
    tensors = (*form.operator.inputs, form.operator.outputs[0])
    scales = [form.scales(int(tensor)) for tensor in tensors]
    if not all(scales):
        return False
    left, right, made = (scale[0] for scale in scales)
    return made != 0 and left * right / made >= 1


def _conv(form: Form) -> int:
    if form.shape(0)[3] != form.shape(1)[3]:
        return 6
    if form.arithmetic == HYBRID:
        return 5 if form.is_per_channel(1, 0) else 2
    return CONV_VERSIONS.get(form.arithmetic, 1)


def _depthwise(form: Form) -> int:
    if form.arithmetic == HYBRID:
        return 6 if form.is_per_channel(1, 3) else 4
    dilated = form.options.dilationWFactor != 1 or form.options.dilationHFactor != 1
    return CONV_VERSIONS.get(form.arithmetic, 2 if dilated else 1)


def _transposed(form: Form) -> int:
    if form.options is not None and form.options.fusedActivationFunction:
        return 4
    if len(form.reads) == len(("shape", "weight", "x", "bias")) and form.reads[3]:
        return 3
    return 2 if form.reads[1] == INT8 else 1


def _dense(form: Form) -> int:
    is_hybrid = form.arithmetic == HYBRID
    if is_hybrid and form.is_per_channel(1, 0):
        return 12
    if len(form.reads) == len(("x", "weight")):
        return 6
    if form.options.keepNumDims:
        return 5
    if is_hybrid:
        return 9 if form.options.asymmetricQuantizeInputs else 3
    return DENSE_VERSIONS.get(form.arithmetic, 1)


def _embedding(form: Form) -> int:
    rows = form.shape(1)[0]
    return 4 if form.reads[1] == INT4 or (rows > 1 and form.is_per_channel(1, 0)) else 1


def _dequantize(form: Form) -> int:
    read = form.reads[0]
    if read == INT8:
        tensor = int(form.operator.inputs[0])
        return 5 if len(form.scales(tensor)) > 1 else 2
    return {INT4: 6, "INT16": 3, "FLOAT16": 3}.get(read, 1)


def _quantize(form: Form) -> int:
    if INT4 in (form.reads[0], form.writes):
        return 4
    if len(form.scales(int(form.operator.outputs[0]))) > 1:
        return 3
    return 2 if form.writes == "INT16" else 1


RULES: Final[Mapping[str, Callable[[Form], int]]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "DEQUANTIZE": _dequantize,
    "EMBEDDING_LOOKUP": _embedding,
    "FULLY_CONNECTED": _dense,
    "QUANTIZE": _quantize,
    "TRANSPOSE_CONV": _transposed,
}
