"""Zeros around an image: let the convolution that reads them add them itself."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from advisor.passes.fx import argument, clone, finish, stamp

aten = torch.ops.aten

PADS: Final = frozenset[Any]({aten.pad.default, aten.constant_pad_nd.default})
CONVOLUTIONS: Final[dict[Any, int]] = {aten.conv1d.default: 1, aten.conv2d.default: 2}
"""Spatial dimensions of the convolutions that take their padding as numbers."""


def fold_padding(module: GraphModule) -> GraphModule:
    """Pad inside convolutions.

    Given: pad with zeros, the same number on both sides of every spatial dimension and none
    elsewhere, read by convolutions only (how TensorFlow's padding arrives); pad with nothing.
    Result: no pad; the convolutions have a larger padding. Runtimes fuse a convolution with what
    comes before it, and a pad between them keeps them from it.
    """
    module = clone(module)
    for node in list(module.graph.nodes):
        if node.target not in PADS:
            continue
        widths: list[Any] = argument(node, 1)
        if any(width != 0 for width in widths):
            if not _fits(node, widths):
                continue
            for user in list(node.users):
                _widen(user, widths)
                stamp(user, made_by="fold_padding")
        node.replace_all_uses_with(argument(node, 0))
        module.graph.erase_node(node)
    return finish(module)


def _fits(node: Node, widths: list[Any]) -> bool:
    """Whether every reader of a pad can pad so itself."""
    is_whole = all(isinstance(width, int) and width >= 0 for width in widths)
    is_even = widths[0::2] == widths[1::2]
    return (
        is_whole
        and is_even
        and _pads_zeros(node)
        and all(
            CONVOLUTIONS.get(user.target, 0) >= len(widths) // 2 and argument(user, 0) is node
            for user in node.users
        )
    )


def _pads_zeros(node: Node) -> bool:
    if node.target is aten.constant_pad_nd.default:
        return not argument(node, 2)
    return argument(node, 2) in (None, "constant") and not argument(node, 3)


def _widen(user: Node, widths: list[int]) -> None:
    """Add ``widths`` (last dimension first, two each) to a convolution's padding."""
    dimensions = CONVOLUTIONS[user.target]
    given: list[int] = argument(user, 4) or [0]
    padding = given * dimensions if len(given) == 1 else [*given]
    for axis, width in enumerate(widths[0::2], start=1):
        padding[-axis] += width
    stride = argument(user, 3) or [1] * dimensions
    user.args = (*user.args[:2], argument(user, 2), stride, padding, *user.args[5:])
