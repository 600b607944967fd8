"""What a quantized graph must look like before Core AI's converter sees it."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from advisor.passes.fx import argument, finish, insert_constant

aten = torch.ops.aten


def count_padding(module: GraphModule) -> None:
    """Spell an average over what lies inside the image as one over padding too, divided by its
    share inside: Core AI counts padding whatever it is told (measured, coreai-torch 0.4.3).

    Given: mean over inside. Result: mean over all / mean over all of an image of ones.
    """
    for node in module.graph.find_nodes(op="call_function", target=aten.avg_pool2d.default):
        x, kernel, stride, padding, is_ceiled, counts, divisor = (
            argument(node, index) for index in range(7)
        )
        held = x.meta.get("val")
        is_plain = not is_ceiled and divisor is None and isinstance(held, torch.Tensor)
        if counts is not False or not padding or not any(padding) or not is_plain:
            continue
        ones = torch.ones(1, 1, *held.shape[-2:])
        share = torch.nn.functional.avg_pool2d(ones, kernel, stride or kernel, padding)
        node.args = (x, kernel, stride, padding, False, True)
        node.kwargs = {}
        users = list(node.users)
        constant = insert_constant(module, node, f"{node.name}_share", share)
        with module.graph.inserting_after(node):
            inside = module.graph.call_function(aten.div.Tensor, (node, constant))
        for user in users:
            user.replace_input_with(node, inside)
    finish(module)
