"""Operators that compute every element alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F

from advisor.targets.coreml.mil.registry import OPERATORS, Call, operator

Tensor = torch.Tensor

UNARY: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "identity": torch.clone,
    "logical_not": torch.logical_not,
    "relu": torch.relu,
    "relu6": F.relu6,
    "round": torch.round,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": F.silu,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}

BINARY: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "add": torch.add,
    "equal": torch.eq,
    "floor_div": torch.floor_divide,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.remainder,
    "mul": torch.mul,
    "not_equal": torch.ne,
    "pow": torch.pow,
    "sub": torch.sub,
}


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Call], Tensor]:
    return lambda call: function(call.tensor("x"))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Call], Tensor]:
    return lambda call: function(call.tensor("x"), call.tensor("y"))


OPERATORS.update({name: _unary(function) for name, function in UNARY.items()})
OPERATORS.update({name: _binary(function) for name, function in BINARY.items()})


@operator("real_div")
def _real_div(call: Call) -> Tensor:
    x, y = call.tensor("x"), call.tensor("y")
    if x.is_floating_point():
        return x / y
    return torch.div(x, y, rounding_mode="floor")


@operator("cast")
def _cast(call: Call) -> Tensor:
    x = call.tensor("x")
    is_integer = call.text("dtype").lstrip("u").startswith("int")
    return x.trunc() if is_integer and x.is_floating_point() else x


@operator("clip")
def _clip(call: Call) -> Tensor:
    return call.tensor("x").clamp(call.float("alpha"), call.float("beta"))


@operator("gelu")
def _gelu(call: Call) -> Tensor:
    x = call.tensor("x")
    match call.text("mode", "EXACT"):
        case "TANH_APPROXIMATION":
            return F.gelu(x, approximate="tanh")
        case "SIGMOID_APPROXIMATION":
            return x * torch.sigmoid(1.702 * x)
        case _:
            return F.gelu(x)


@operator("inverse")
def _inverse(call: Call) -> Tensor:
    return 1 / (call.tensor("x") + call.float("epsilon", 1e-4))


@operator("rsqrt")
def _rsqrt(call: Call) -> Tensor:
    return torch.rsqrt(call.tensor("x") + call.float("epsilon", 1e-12))


@operator("log")
def _log(call: Call) -> Tensor:
    return torch.log(call.tensor("x") + call.float("epsilon", 1e-45))


@operator("threshold")
def _threshold(call: Call) -> Tensor:
    return call.tensor("x").clamp_min(call.float("alpha"))


@operator("leaky_relu")
def _leaky_relu(call: Call) -> Tensor:
    return F.leaky_relu(call.tensor("x"), call.float("alpha", 0.01))


@operator("prelu")
def _prelu(call: Call) -> Tensor:
    return F.prelu(call.tensor("x"), call.tensor("alpha"))


@operator("elu")
def _elu(call: Call) -> Tensor:
    return F.elu(call.tensor("x"), call.float("alpha", 1.0))


@operator("sigmoid_hard")
def _sigmoid_hard(call: Call) -> Tensor:
    line = call.tensor("x") * call.float("alpha", 0.2) + call.float("beta", 0.5)
    return line.clamp(0.0, 1.0)


@operator("linear_activation")
def _linear_activation(call: Call) -> Tensor:
    return call.tensor("x") * call.float("alpha", 1.0) + call.float("beta", 0.0)


@operator("scaled_tanh")
def _scaled_tanh(call: Call) -> Tensor:
    return call.float("alpha", 1.0) * torch.tanh(call.tensor("x") * call.float("beta", 1.0))


@operator("clamped_relu")
def _clamped_relu(call: Call) -> Tensor:
    x = call.tensor("x")
    return torch.where(x < 0, x * call.float("alpha", 1.0), x).clamp_max(call.float("beta", 1.0))


@operator("thresholded_relu")
def _thresholded_relu(call: Call) -> Tensor:
    x, alpha = call.tensor("x"), call.float("alpha", 1.0)
    return torch.where(x >= alpha, x, torch.zeros_like(x))


@operator("softplus_parametric")
def _softplus_parametric(call: Call) -> Tensor:
    x = call.tensor("x")
    shape = [1, -1, *[1] * (x.ndim - 2)]
    alpha, beta = call.tensor("alpha").reshape(shape), call.tensor("beta").reshape(shape)
    return alpha * torch.log(1 + torch.exp(beta * x))


@operator("select")
def _select(call: Call) -> Tensor:
    return torch.where(call.tensor("cond").bool(), call.tensor("a"), call.tensor("b"))


@operator("quantize")
def _quantize(call: Call) -> Tensor:
    scale, offset = _parameters(call)
    low, high = (-128, 127) if call.text("output_dtype") == "int8" else (0, 255)
    return (torch.round(call.tensor("input") / scale) + offset).clamp(low, high)


@operator("dequantize")
def _dequantize(call: Call) -> Tensor:
    scale, offset = _parameters(call)
    return (call.tensor("input").to(torch.float32) - offset) * scale


def _parameters(call: Call) -> tuple[Tensor, Tensor]:
    """Scale and zero point, shaped to go along the axis that they are for."""
    x, scale = call.tensor("input"), call.tensor("scale").to(torch.float32)
    zero = call.optional("zero_point")
    offset = torch.zeros(()) if zero is None else zero.to(torch.float32)
    if scale.ndim:
        shape = [1] * x.ndim
        shape[call.int("axis")] = -1
        scale, offset = scale.reshape(shape), offset.reshape(shape if offset.ndim else ())
    return scale, offset
