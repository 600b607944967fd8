"""Run a MIL function operator by operator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

import torch

from advisor.errors import UnsupportedError
from advisor.targets.coreml.mil import elementwise, layers, moves, reductions, resampling
from advisor.targets.coreml.mil.constants import read_weight, type_name
from advisor.targets.coreml.mil.registry import OPERATORS, Call, Value
from advisor.targets.coreml.names import as_list

_ = (elementwise, layers, moves, reductions, resampling)  # each registers its operators

DTYPES: Final = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "int32": torch.int32,
    "int16": torch.int16,
    "uint16": torch.int32,  # torch has few operators on uint16
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}

KEPT_ELEMENTS: Final = 2**28
"""Elements of expanded constants that are kept between runs: 1 GB of float32."""


def dtype_of(var: Any) -> torch.dtype | None:
    """torch's dtype of a value; None for text."""
    return DTYPES.get(type_name(var.dtype))


class Evaluator:
    """One program that can be run in whole or in part; constants are expanded once.

    function: the loaded program's, as coremltools parses it. labels: of a classifier's classes;
    its output here is the scores that ``classify`` puts under them.
    """

    def __init__(self, function: Any) -> None:
        self.operations: list[Any] = list(function.operations)
        self.inputs: list[str] = list(function.inputs)
        self.outputs: list[Any] = list(function.outputs)
        self.labels: list[str] = []
        if self.operations and self.operations[-1].op_type == "classify":
            last = self.operations.pop()
            self.outputs = [last.inputs["probabilities"]]
            self.labels = [str(each) for each in as_list(last.inputs["classes"].val)]
        self._input_dtypes = {name: dtype_of(var) for name, var in function.inputs.items()}
        self._constants: dict[str, Value] = {}
        self._kept = 0

    def run(self, feeds: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """The program's outputs for its inputs by name."""
        values = {
            name: tensor.to(self._input_dtypes[name] or tensor.dtype)
            for name, tensor in feeds.items()
        }
        return self.compute(self.operations, values, self.outputs)

    def compute(
        self, operations: Iterable[Any], values: Mapping[str, torch.Tensor], wanted: Sequence[Any]
    ) -> list[torch.Tensor]:
        """The ``wanted`` values after ``operations``, which are in order.

        values: what is known before, by name. Those are not computed again.

        Raises:
            UnsupportedError: an operator that this evaluator does not know.
        """
        known: dict[str, Value] = dict(values)
        with torch.no_grad():
            for op in operations:
                if op.op_type != "const" and not op.op_type.startswith("constexpr_"):
                    self._step(op, known)
        return [self._value(var, known) for var in wanted]

    def _step(self, op: Any, known: dict[str, Value]) -> None:
        names = [var.name for var in op.outputs]
        if all(name in known for name in names):
            return
        compute = OPERATORS.get(op.op_type)
        if compute is None:
            raise UnsupportedError(
                f"the MIL evaluator has no operator {op.op_type!r} ({op.name}); the package can "
                "only be checked on a Mac"
            )
        inputs = {
            name: _floats(self._given(var, known))
            for name, var in op.inputs.items()
            if var is not None
        }
        shapes = tuple(tuple(var.shape) for var in op.outputs)
        result = compute(Call(op.op_type, inputs, shapes))
        for var, value in zip(op.outputs, as_list(result), strict=True):
            known[var.name] = value.to(dtype_of(var))

    def _given(self, var: Any, known: Mapping[str, Value]) -> Value:
        values = [self._value(each, known) for each in as_list(var)]
        return values if isinstance(var, (list, tuple)) else values[0]

    def _value(self, var: Any, known: Mapping[str, Value]) -> Value:
        if var.name in known:
            return known[var.name]
        if var.name in self._constants:
            return self._constants[var.name]
        value = self._constant(var)
        size = value.numel() if isinstance(value, torch.Tensor) else 0
        if self._kept + size <= KEPT_ELEMENTS:
            self._constants[var.name] = value
            self._kept += size
        return value

    def _constant(self, var: Any) -> Value:
        if var.op is not None and var.op.op_type == "const" and isinstance(var.val, str):
            return var.val
        weight = read_weight(var)
        if weight is None:
            raise KeyError(f"{var.name} is neither given nor a constant")
        if weight.scale is None and weight.table is None:
            return weight.values
        dtype = dtype_of(var)
        return weight.expand().to(dtype if dtype is not None else torch.float32)


def _floats(value: Value) -> Value:
    """float16 values in float32, in which they are computed."""
    if isinstance(value, list):
        return [_floats(each) for each in as_list(cast("Any", value))]
    if isinstance(value, torch.Tensor) and value.dtype == torch.float16:
        return value.to(torch.float32)
    return value
