"""What the operators of a quantized graph become in Core AI: one function each.

No number is computed here: integers, tables and scales are those of the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from advisor.targets.coreai.constants import constant, zeros
from advisor.targets.coreai.packages import load

Values = dict[str, Any]
"""What the converter has made so far, by node name."""


@dataclass(frozen=True, slots=True)
class Lowerings:
    """Lowerings for one exported program, whose buffers hold the plan's numbers."""

    program: ExportedProgram

    def register(self, converter: Any) -> None:
        """Teach a converter the operators."""
        functions: dict[str, Callable[[Values, Node, Any], Any]] = {
            "advisor::dequantize_affine.default": self._affine,
            "advisor::dequantize_lut.default": self._lut,
            "advisor::quantize_static.default": _quantize,
            "advisor::dequantize_static.default": _dequantize,
            "advisor_targets::linear.default": _linear,
        }
        for name, function in functions.items():
            converter.register_torch_lowering(name)(function)

    def _stored(self, node: Any) -> torch.Tensor | None:
        """The tensor behind an argument; None where there is none."""
        if not isinstance(node, Node):
            return None
        signature = self.program.graph_signature
        target = signature.inputs_to_buffers.get(node.name) or signature.inputs_to_parameters.get(
            node.name
        )
        if target is not None:
            stored: Any = self.program.state_dict[target]
            return torch.as_tensor(stored.detach())
        found: Any = self.program.constants[signature.inputs_to_lifted_tensor_constants[node.name]]
        return torch.as_tensor(found)

    def _affine(self, _values: Values, node: Node, loc: Any) -> Any:
        data, scale, zero_point = (self._stored(given) for given in node.args[:3])
        axis, block, dtype = node.args[3:6]
        assert data is not None  # it always has both
        assert scale is not None
        shape = list(scale.shape)
        if not block:
            shape = [1] * data.ndim
            if scale.ndim:
                shape[int(str(axis)) % data.ndim] = -1
        scales = scale.to(torch.float32).reshape(shape)
        kind = str(dtype)
        offset = (
            zeros(tuple(scales.shape), kind)
            if zero_point is None
            else constant(zero_point.reshape(shape).numpy(), kind, f"{node.name}_zero_point")
        )
        return _dialect().blockwise_shift_scale(
            constant(data.numpy(), kind, f"{node.name}_values"),
            constant(scales.numpy(), "float32", f"{node.name}_scale"),
            offset,
            zeros(tuple(scales.shape), "float32"),
            loc=loc,
        )

    def _lut(self, _values: Values, node: Node, loc: Any) -> Any:
        indices, table, scale = (self._stored(given) for given in node.args[:3])
        assert indices is not None  # it always has both
        assert table is not None
        ones = [1] * (indices.ndim - 1)
        entries = table.reshape(len(table), *ones, table.shape[1], 1)
        if scale is None:
            lut = constant(entries.to(torch.float32).numpy(), "float32", f"{node.name}_table")
        else:
            scales = scale.to(torch.float32).reshape(len(table), *ones, 1, 1)
            lut = _dialect().blockwise_shift_scale(
                constant(entries.to(torch.int8).numpy(), "int8", f"{node.name}_table"),
                constant(scales.numpy(), "float32", f"{node.name}_scale"),
                zeros(tuple(scales.shape), "int8"),
                zeros(tuple(scales.shape), "float32"),
                loc=loc,
            )
        return _dialect().lut_to_dense(
            constant(indices.numpy(), f"uint{node.args[3]}", f"{node.name}_indices"),
            lut,
            _dialect().constant(np.array(0, dtype=np.int16)),
            loc=loc,
        )


def _quantize(values: Values, node: Node, loc: Any) -> Any:
    x, scale, zero_point, dtype = node.args
    return _dialect().quantize(values[_name(x)], *_static(scale, zero_point, str(dtype)), loc=loc)


def _dequantize(values: Values, node: Node, loc: Any) -> Any:
    q, scale, zero_point = node.args
    assert isinstance(q, Node)  # the graph's own form
    dtype = str(q.meta["val"].dtype).removeprefix("torch.")
    return _dialect().dequantize(values[q.name], *_static(scale, zero_point, dtype), loc=loc)


def _static(scale: Any, zero_point: Any, dtype: str) -> tuple[Any, Any, Any, Any]:
    """Scale, zero point, a float offset of 0, and the axis of none."""
    make = _dialect().constant
    return (
        make(np.array(scale, dtype=np.float32)),
        make(np.array(zero_point, dtype=dtype)),
        make(np.array(0, dtype=np.float32)),
        make(np.array(0, dtype=np.int32)),
    )


def _linear(values: Values, node: Node, loc: Any) -> Any:
    dialect = _dialect()
    x, weight, bias = node.args
    turned = dialect.transpose(values[_name(weight)], np.array([1, 0], dtype=np.uint32), loc=loc)
    made = dialect.broadcasting_batch_matmul(values[_name(x)], turned, loc=loc)
    return made if bias is None else dialect.broadcasting_add(made, values[_name(bias)], loc=loc)


def _name(node: Any) -> str:
    return str(node.name)


def _dialect() -> Any:
    return load("coreai._compiler.dialects.coreai")
