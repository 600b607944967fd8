"""Which operators a runtime computes inside the operator before them, so that they cost no pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch.fx import Node

from advisor.passes.graph import Layer, name_of
from advisor.passes.liveness import VIEWS
from advisor.passes.regions import short_op
from advisor.passes.shapes import TensorInfo

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from advisor.targets.rules import FusionRules


def find_fused(
    module: GraphModule,
    layers: Sequence[Layer],
    shapes: Mapping[str, TensorInfo],
    rules: Sequence[FusionRules],
) -> dict[Node, Node]:
    """By fused operator, the input that its kernel already holds.

    Given: shapes by node name at the deployment's batch. Result: operators that one of ``rules``
    fuses after what makes one of their inputs, where nothing else reads that input and the size
    stays. A chain of fused operators counts as what it begins with, and as its last operator.
    """
    ops = {layer.output: layer.op for layer in layers}
    kinds: dict[Node, tuple[str, ...]] = {}
    found: dict[Node, Node] = {}
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        op = ops.get(name_of(node)) or short_op(node)
        kinds[node] = (op,)
        fitting = [rule for rule in rules if op in rule.operators]
        for source in node.all_input_nodes if fitting else ():
            maker = _behind_views(source)
            if maker is None or len(source.users) > 1 or not _same_size(node, source, shapes):
                continue
            if any(kind in rule.after for rule in fitting for kind in kinds.get(maker, ())):
                found[node] = source
                kinds[node] = (*kinds[maker], op)
                break
    return found


def _behind_views(node: Node) -> Node | None:
    """The operator whose output ``node`` is a window on; None where others read it too."""
    while short_op(node) in VIEWS:
        node = node.all_input_nodes[0]
        if len(node.users) > 1:
            return None
    return node


def _same_size(node: Node, source: Node, shapes: Mapping[str, TensorInfo]) -> bool:
    known = node.name in shapes and source.name in shapes
    return known and shapes[node.name].count == shapes[source.name].count
