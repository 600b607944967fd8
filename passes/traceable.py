"""What stands between a model and torch.export, put aside while the model is exported."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch.nn.modules import transformer
from torch.utils import _pytree as pytree

from advisor.errors import CaptureError

KEPT: Final = (
    torch.Tensor,
    *(int, float, bool, complex, str, bytes, type(None)),
    *(torch.SymInt, torch.SymFloat, torch.SymBool),
)
"""What torch.export lets a program return. Anything else is an object of the model's own."""

DETECTOR: Final = "_detect_is_causal_mask"
"""A function inside torch.nn.modules.transformer; torch has no setting for what it does."""


def describe_dropped(outputs: Any) -> tuple[str, ...]:
    """A note on every part of ``outputs`` that a captured graph cannot return.

    Such are the key-value caches that Hugging Face decoders return beside their logits.

    Raises:
        CaptureError: no tensor would be left.
    """
    leaves = pytree.tree_flatten_with_path(outputs)[0]
    dropped = [(path, leaf) for path, leaf in leaves if not isinstance(leaf, KEPT)]
    if not any(isinstance(leaf, torch.Tensor) for _, leaf in leaves):
        found = ", ".join(sorted({type(leaf).__name__ for _, leaf in leaves})) or "nothing"
        raise CaptureError(
            f"the model returns no tensor that a graph could return, but {found}; return tensors "
            "in tuples, lists or dicts, or name the class to torch.export.register_dataclass"
        )
    return tuple(
        f"output{pytree.keystr(path)} is left out: only tensors can be returned, and "
        f"{type(leaf).__name__} is a class of the model's own"
        for path, leaf in dropped
    )


@contextmanager
def returning_tensors(model: torch.nn.Module) -> Generator[None]:
    """While open, calls of ``model`` return None for every part that a graph cannot return."""

    def keep(_module: torch.nn.Module, _args: Any, outputs: Any) -> Any:
        leaves, tree = pytree.tree_flatten(outputs)
        return pytree.tree_unflatten([x if isinstance(x, KEPT) else None for x in leaves], tree)

    hook = model.register_forward_hook(keep)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def without_mask_detection() -> Generator[None]:
    """While open, torch.nn.Transformer's layers do not look whether a mask is the causal one.

    They read the mask's values to find out, which cannot be traced. The mask itself is applied
    either way; knowing that it is causal only chooses a kernel.
    """

    def trust(
        mask: torch.Tensor | None, is_causal: bool | None = None, size: int | None = None
    ) -> bool:
        del mask, size  # read only to detect
        return is_causal is True

    detect = getattr(transformer, DETECTOR)
    setattr(transformer, DETECTOR, trust)
    try:
        yield
    finally:
        setattr(transformer, DETECTOR, detect)
