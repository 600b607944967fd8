"""Averages over whole images, spelled so that every runtime takes them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from advisor.passes.fx import argument, clone, finish, stamp

aten = torch.ops.aten


def name_global_pools(module: GraphModule) -> GraphModule:
    """Say that an average is over everything.

    Given: avg_pool2d without padding, its window as large as the image or larger (EfficientNet's
    last, whose window is as wide as its channels are many). Result: adaptive_avg_pool2d to one
    value. TensorRT refuses windows far larger than an image.
    """
    module = clone(module)
    for node in module.graph.nodes:
        if node.target is aten.avg_pool2d.default and _covers_all(node):
            node.target, node.args = aten.adaptive_avg_pool2d.default, (node.args[0], [1, 1])
            stamp(node, made_by="name_global_pools")
    return finish(module)


def _covers_all(node: Node) -> bool:
    source, window = node.all_input_nodes[0].meta.get("val"), argument(node, 1)
    padding, divisor = argument(node, 3), argument(node, 6)
    if not isinstance(source, Tensor) or any(padding or ()) or divisor is not None:
        return False
    height, width = (window[0], window[-1])
    # One beyond the image counts what is in the image only (ceil_mode).
    return all(
        isinstance(size, int) and side >= size
        for size, side in zip(source.shape[-2:], (height, width), strict=True)
    )
