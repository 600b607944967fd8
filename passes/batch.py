"""Whether the first dimension of the inputs counts independent samples, found by running the model.

Only then may the batch be changed: a recurrent network may read time first, and a model may
compare the samples of a batch with each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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

DEPENDENT: Final = (
    "the outputs for a sample depend on its neighbours along the first dimension, which therefore "
    "is no batch"
)

TOLERANCE: Final = 1e-3
"""Largest relative difference (Frobenius norm) between a sample alone and in a batch: kernels
chosen by size differ by 1e-6, a sample that sees another by far more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """size: of the example inputs; None when no input has a dimension. fixed: why no other batch
    is possible, or "". batched: per flattened input, whether its first dimension is the batch.
    shapes: of the output tensors at batch 1 and 2, where the model was run so.
    """

    size: int | None
    fixed: str
    batched: tuple[bool, ...]
    shapes: tuple[tuple[tuple[int, ...], ...], ...] = ()


def find_batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Batch:
    """What looks like the batch: the first dimension of the first input that has one.

    Every input of that first size is taken to have it.
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
    return Batch(size=size, fixed="", batched=batched)


def check_batch(
    batch: Batch,
    run: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    outputs: Any,
) -> Batch:
    """Compare a sample alone with the same sample beside another one; fix the batch if it differs.

    outputs: of ``run(*args, **kwargs)``.
    """
    if batch.size is None:
        return batch
    alone = outputs
    if batch.size != 1:
        single = resize_batch(args, kwargs, batch, 1)
        try:
            alone = run(*single[0], **single[1])
        except RUN_ERRORS as error:
            return replace(batch, fixed=f"the model does not run at batch 1 ({_summary(error)})")
    # The neighbour should differ from the sample; reversed ids may be out of a column's range.
    for neighbour in (_reverse, _keep):
        pair = _change(args, kwargs, batch.batched, partial(_pair, neighbour))
        try:
            together = run(*pair[0], **pair[1])
        except RUN_ERRORS as error:
            problem = f"the model does not run at batch 2 ({_summary(error)})"
            batch = replace(batch, fixed=problem)
            continue
        if _agree(alone, together):
            return replace(batch, fixed="", shapes=(_shapes(alone), _shapes(together)))
        return replace(batch, fixed=DEPENDENT)
    return batch


def resize_batch(
    args: tuple[Any, ...], kwargs: dict[str, Any], batch: Batch, size: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs with the last sample ``size`` times."""
    return _change(args, kwargs, batch.batched, lambda tensor: torch.cat([tensor[-1:]] * size))


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


def _shapes(outputs: Any) -> tuple[tuple[int, ...], ...]:
    leaves = pytree.tree_leaves(outputs)
    return tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, torch.Tensor))


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
    error, power = float(difference.square().sum()), float(reference.square().sum())
    return error <= TOLERANCE**2 * power + 1e-24


def _summary(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
