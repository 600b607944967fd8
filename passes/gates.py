"""SiLU as the product that it is, for runtimes whose integers have no other form of it."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from advisor.passes.fx import argument, clone, copy_meta, finish, stamp
from advisor.passes.graph import name_of
from advisor.targets.capability import StaticRules

aten = torch.ops.aten


def spells_gates(rules: StaticRules | None) -> bool:
    """Whether the runtime's plans see SiLU spelled out: where sigmoids can be integers."""
    return rules is not None and rules.fixed_output("sigmoid") is not None


def spell_gates(module: GraphModule) -> GraphModule:
    """x · sigmoid(x) in place of ``silu`` (Elfwing et al. 2017, arXiv:1702.03118).

    Given: a normalised graph. Result: no ``silu``; the sigmoids are called ``<name>.gate``, and
    the products keep the names of the functions that they replace.
    """
    module = clone(module)
    for node in module.graph.find_nodes(op="call_function", target=aten.silu.default):
        source = argument(node, 0)
        with module.graph.inserting_before(node):
            gate = module.graph.call_function(aten.sigmoid.default, (source,))
        copy_meta(node, gate)
        stamp(gate, made_by="spell_gates", name=f"{name_of(node)}.gate")
        node.target, node.args = aten.mul.Tensor, (source, gate)
        stamp(node, made_by="spell_gates")
    return finish(module)
