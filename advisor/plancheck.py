"""What a parsed plan must satisfy beyond its types: known schemes, unique names, sane ranges."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from advisor.budget import Budget
from advisor.errors import BudgetError
from advisor.formats import DTYPE_BITS, SCHEMES
from advisor.parse import FieldError

if TYPE_CHECKING:
    from advisor.plan import Alternative, LayerDecision, Plan, TensorDecision


def check_plan(plan: Plan) -> None:
    """Nothing, when the plan's fields agree with each other.

    Raises:
        FieldError: an unknown scheme or dtype, a repeated name, a number out of range, or an
            alternative that names a layer which the plan does not have.
    """
    _check_minimum(plan.batch, 1, "batch")
    for name, value in (("sequence", plan.sequence), ("threads", plan.threads)):
        if value is not None:
            _check_minimum(value, 1, name)
    try:
        Budget.parse(plan.budget)
    except BudgetError as error:
        raise FieldError("budget", str(error)) from error
    layers = _check_unique((layer.name for layer in plan.layers), "layers")
    for index, layer in enumerate(plan.layers):
        _check_layer(layer, f"layers[{index}]")
    _check_unique((tensor.name for tensor in plan.tensors), "tensors")
    for index, tensor in enumerate(plan.tensors):
        _check_tensor(tensor, f"tensors[{index}]")
    for field, alternatives in (
        ("baselines", plan.baselines),
        ("pareto", plan.pareto),
        ("trials", plan.trials),
    ):
        _check_alternatives(alternatives, layers, field)
    for pattern, scheme in plan.pins.items():
        _check_scheme(scheme.partition("/")[0], f"pins[{pattern!r}]")


def _check_layer(layer: LayerDecision, path: str) -> None:
    _check_scheme(layer.scheme, f"{path}.scheme")
    _check_minimum(layer.params, 0, f"{path}.params")
    _check_minimum(layer.size_bytes, 0, f"{path}.size_bytes")
    for axis, size in enumerate(layer.weight_shape):
        _check_minimum(size, 0, f"{path}.weight_shape[{axis}]")
    for index, option in enumerate(layer.options):
        _check_scheme(option.scheme, f"{path}.options[{index}].scheme")
        _check_minimum(option.size_bytes, 0, f"{path}.options[{index}].size_bytes")
    if SCHEMES[layer.scheme].is_float and not layer.reason:
        raise FieldError(f"{path}.reason", f"a layer kept in {layer.scheme} must say why")


def _check_tensor(tensor: TensorDecision, path: str) -> None:
    if tensor.dtype not in DTYPE_BITS:
        raise FieldError(f"{path}.dtype", _unknown("dtype", tensor.dtype, DTYPE_BITS))
    if tensor.scale < 0:
        raise FieldError(f"{path}.scale", f"a scale is positive, found {tensor.scale!r}")


def _check_alternatives(
    alternatives: tuple[Alternative, ...],
    layers: set[str],
    field: str,
) -> None:
    for index, alternative in enumerate(alternatives):
        for layer, choice in alternative.schemes.items():
            path = f"{field}[{index}].schemes[{layer!r}]"
            if layer not in layers:
                raise FieldError(path, "the plan has no layer of that name")
            _check_scheme(choice.partition("/")[0], path)


def _check_unique(names: Iterable[str], field: str) -> set[str]:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            raise FieldError(f"{field}[{index}].name", f"{name!r} is there twice")
        seen.add(name)
    return seen


def _check_scheme(name: str, path: str) -> None:
    if name not in SCHEMES:
        raise FieldError(path, _unknown("scheme", name, SCHEMES))


def _check_minimum(value: int, least: int, path: str) -> None:
    if value < least:
        raise FieldError(path, f"expected at least {least}, found {value}")


def _unknown(what: str, name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f"unknown {what} {name!r}; " + (
        f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    )
