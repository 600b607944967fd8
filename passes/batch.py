"""Whether the first dimension of the inputs counts independent samples, found by running the model.

Only then may the batch be changed: a recurrent network may read time first, and a model may
compare the samples of a batch with each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch.utils import _pytree as pytree

RUN_ERRORS: Final = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NotImplementedError,
    AssertionError,
    ArithmeticError,
)
"""What a model is known to raise on inputs that do not fit it."""

TOLERANCE: Final = 1e-3
"""Largest relative difference (Frobenius norm) between a sample alone and in a batch: kernels
chosen by size differ by 1e-6, a sample that sees another by far more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """size: of the example inputs; None when no input has a dimension. fixed: why no other batch
    is possible, or "". batched: per flattened input, whether its first dimension is the batch.
    """

    size: int | None
    fixed: str
    batched: tuple[bool, ...]


def find_batch(
    run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any
) -> Batch:
    """Compare a sample alone with the same sample beside another one.

    outputs: of ``run(*args, **kwargs)``. The batch is the first dimension of the first input that
    has one; every input of that first size is taken to have it.
    """
    leaves: list[Any] = pytree.tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    sizes = [int(tensor.shape[0]) for tensor in tensors if tensor.ndim]
    if not sizes:
        return Batch(size=None, fixed="", batched=(False,) * len(leaves))
    size = sizes[0]
    batched = tuple(
        isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.shape[0] == size
        for leaf in leaves
    )
    problem = _compare(run, args, kwargs, outputs, batched, size)
    return Batch(size=size, fixed=problem, batched=batched)


def repeat_batch(
    args: tuple[Any, ...], kwargs: dict[str, Any], batch: Batch
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs twice, for a batch of 1, which torch.export would take for a constant."""
    if batch.size != 1 or batch.fixed:
        return args, kwargs
    return _change(args, kwargs, batch.batched, lambda tensor: torch.cat([tensor, tensor]))


def _compare(
    run: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    outputs: Any,
    batched: tuple[bool, ...],
    size: int,
) -> str:
    alone = outputs
    if size != 1:
        single = _change(args, kwargs, batched, lambda tensor: tensor[-1:])
        try:
            alone = run(*single[0], **single[1])
        except RUN_ERRORS as error:
            return f"the model does not run at batch 1 ({_summary(error)})"
    problem = ""
    # The neighbour should differ from the sample; reversed ids may be out of a column's range.
    for neighbour in (_reverse, _keep):
        pair = _change(args, kwargs, batched, partial(_pair, neighbour))
        try:
            together = run(*pair[0], **pair[1])
        except RUN_ERRORS as error:
            problem = f"the model does not run at batch 2 ({_summary(error)})"
            continue
        if _agree(alone, together):
            return ""
        return (
            "the outputs for a sample depend on its neighbours along the first dimension, "
            "which therefore is no batch"
        )
    return problem


def _reverse(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flip(-1) if tensor.ndim > 1 else tensor


def _pair(change: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([change(tensor[:1]), tensor[-1:]])


def _keep(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _change(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batched: tuple[bool, ...],
    change: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    leaves, spec = pytree.tree_flatten((args, kwargs))
    changed = [
        change(leaf) if is_batched else leaf
        for leaf, is_batched in zip(leaves, batched, strict=True)
    ]
    new_args, new_kwargs = pytree.tree_unflatten(changed, spec)
    return new_args, new_kwargs


def _agree(alone: Any, together: Any) -> bool:
    """Whether the last sample of ``together`` has the outputs it has alone."""
    single, pair = pytree.tree_leaves(alone), pytree.tree_leaves(together)
    return len(single) == len(pair) and all(
        _same(one, two) for one, two in zip(single, pair, strict=True)
    )


def _same(one: Any, two: Any) -> bool:
    if not isinstance(one, torch.Tensor) or not isinstance(two, torch.Tensor):
        return True  # no tensor: not compared
    if one.ndim != two.ndim:
        return False
    for dim, (alone, together) in enumerate(zip(one.shape, two.shape, strict=True)):
        if alone != together:
            if together != 2 * alone:
                return False
            two = two.narrow(dim, alone, alone)
            break
    if one.shape != two.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, two)
    reference = one.double().nan_to_num(0.0, 0.0, 0.0)
    difference = reference - two.double().nan_to_num(0.0, 0.0, 0.0)
    length = torch.linalg.vector_norm
    return bool(length(difference) <= TOLERANCE * length(reference) + 1e-12)


def _summary(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
