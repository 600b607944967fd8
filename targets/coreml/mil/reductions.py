"""Operators that reduce, sort or accumulate along axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from advisor.targets.coreml.mil.registry import OPERATORS, Call, operator

Tensor = torch.Tensor


def _product(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in dim), reverse=True):
        x = x.prod(dim=axis, keepdim=keepdim)
    return x


def _mean(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return x.mean(dim=dim, keepdim=keepdim)


def _sum(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return x.sum(dim=dim, keepdim=keepdim)


def _max(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return x.amax(dim=dim, keepdim=keepdim)


def _min(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return x.amin(dim=dim, keepdim=keepdim)


def _l1(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return x.abs().sum(dim=dim, keepdim=keepdim)


def _sum_square(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return x.square().sum(dim=dim, keepdim=keepdim)


def _l2(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return x.square().sum(dim=dim, keepdim=keepdim).sqrt()


def _log_sum_exp(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return torch.logsumexp(x, dim=dim, keepdim=keepdim)


def _log_sum(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return x.sum(dim=dim, keepdim=keepdim).log()


REDUCTIONS: Final[dict[str, Callable[[Tensor, list[int], bool], Tensor]]] = {
    "reduce_l1_norm": _l1,
    "reduce_l2_norm": _l2,
    "reduce_log_sum": _log_sum,
    "reduce_log_sum_exp": _log_sum_exp,
    "reduce_max": _max,
    "reduce_mean": _mean,
    "reduce_min": _min,
    "reduce_prod": _product,
    "reduce_sum": _sum,
    "reduce_sum_square": _sum_square,
}


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[[Call], Tensor]:
    def reduce(call: Call) -> Tensor:
        x = call.tensor("x")
        return function(x, call.ints("axes", range(x.ndim)), bool(call.int("keep_dims")))

    return reduce


OPERATORS.update({name: _reduction(function) for name, function in REDUCTIONS.items()})


@operator("reduce_argmax")
def _argmax(call: Call) -> Tensor:
    return call.tensor("x").argmax(dim=call.int("axis", -1), keepdim=bool(call.int("keep_dims")))


@operator("reduce_argmin")
def _argmin(call: Call) -> Tensor:
    return call.tensor("x").argmin(dim=call.int("axis", -1), keepdim=bool(call.int("keep_dims")))


@operator("cumsum")
def _cumsum(call: Call) -> Tensor:
    x, axis = call.tensor("x"), call.int("axis")
    x = x.flip(axis) if call.int("reverse") else x
    made = x.cumsum(dim=axis)
    made = made - x if call.int("exclusive") else made
    return made.flip(axis) if call.int("reverse") else made


@operator("topk")
def _topk(call: Call) -> list[Tensor]:
    found = call.tensor("x").topk(
        call.int("k", 1), dim=call.int("axis", -1), largest=not call.int("ascending")
    )
    return [found.values, found.indices][: len(call.shapes)]


@operator("argsort")
def _argsort(call: Call) -> Tensor:
    return call.tensor("x").argsort(
        dim=call.int("axis", -1), descending=not call.int("ascending"), stable=True
    )
