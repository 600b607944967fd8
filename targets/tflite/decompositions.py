"""Operators that litert-torch has no form of, spelled with those it has.

Files have fixed shapes, so that a recurrent operator is its steps one after another, as in
litert-torch's own form of ``aten.lstm``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import is_not
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch.fx import GraphModule

from advisor.passes.fx import finish
from advisor.targets.tflite.markers import MARK, NAMELESS
from advisor.targets.tflite.packages import load
from advisor.targets.unrolled import UNROLLED

aten = torch.ops.aten
Tensor = torch.Tensor

REGISTRY: Final = "litert_torch.fx_infra.decomp"

SAFE_RANK: Final = 3
"""Dimensions before the last one that are too many where the last of them has size 1."""


def _conv1d_padded(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: str = "valid",
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Tensor:
    """Padding in numbers; the odd one out comes last."""
    total = 0 if padding == "valid" else dilation[0] * (weight.shape[-1] - 1)
    if total % 2:
        x = F.pad(x, (0, 1))
    return F.conv1d(x, weight, bias, stride[0], total // 2, dilation[0], groups)


DECOMPOSITIONS: Final[dict[Any, Callable[..., Tensor]]] = {
    **UNROLLED,
    aten.conv1d.padding: _conv1d_padded,
}
"""By operator, the same in others."""


def register_decompositions() -> None:
    """Give them to the converter; does nothing the second time."""
    registry = load(REGISTRY)
    for operator, function in DECOMPOSITIONS.items():
        registry.add_pre_convert_decomp(operator, function)


def flatten_rows(module: GraphModule, shapes: Mapping[str, Any]) -> None:
    """Let linear layers read a matrix where litert-torch 0.10.0 fails on what they read.

    Those are tensors of four dimensions and more of which the last but one has size 1. Markers keep
    the converter from putting the dimensions back. shapes: what every node computes, by name.
    """
    for node in module.graph.find_nodes(op="call_function", target=aten.linear.default):
        lead = tuple(shapes[node.name].shape[:-1])
        if len(lead) < SAFE_RANK or lead[-1] != 1:
            continue
        x, weight = node.args[:2]
        width, count = (int(size) for size in reversed(weight.meta["val"].shape))
        with module.graph.inserting_before(node):
            rows = module.graph.call_function(aten.reshape.default, (x, (-1, width)))
            rows = module.graph.call_function(MARK, (rows, NAMELESS))
        node.replace_input_with(x, rows)
        with module.graph.inserting_after(node):
            kept = module.graph.call_function(MARK, (node, NAMELESS))
        with module.graph.inserting_after(kept):
            back = module.graph.call_function(aten.reshape.default, (kept, (*lead, count)))
        node.replace_all_uses_with(back, delete_user_cb=partial(is_not, kept))
    finish(module)
