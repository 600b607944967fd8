"""Markers: operators that keep values recognisable, and apart, through the converter.

A marker changes nothing. In MLIR it is a ``tfl.custom``, which no optimisation looks into or moves
across: LayerNorm's gain stays out of the weights behind it, and every marked value can be found by
name in the flatbuffer. There the markers are taken out again (``skeleton.py``).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from advisor.passes import ops
from advisor.passes.candidates import regions_of
from advisor.passes.fx import clone, copy_meta, finish
from advisor.passes.graph import Graph, name_of
from advisor.passes.layers import LAYER_OPS, can_be_layer, operands
from advisor.passes.regions import short_op
from advisor.targets.capability import load_capability
from advisor.targets.tflite.packages import load
from advisor.targets.tflite.twins import find_twins

CUSTOM_CODE: Final = "advisor.mark"
"""Name of the marker's operator in the flatbuffer."""

LAYOUT_PASS: Final = (
    "litert_torch._convert.fx_passes.optimize_layout_transposes_pass.layout_rewrite"
)

CHANNELS_LAST: Final = "|channels_last"
"""End of a marker's text where the converter moved the channels to the end."""

NAMELESS: Final = "-"
"""Begin of the text of a marker that only keeps its value apart."""

_NAMESPACE: Final = "advisor_tflite"


def _keep(x: torch.Tensor, name: str) -> torch.Tensor:
    return x.clone()


def _like(x: torch.Tensor, name: str) -> torch.Tensor:
    return torch.empty_like(x)


def _operator() -> ops.Operator:
    if not hasattr(torch.ops.advisor_tflite, "mark"):
        ops.define(f"{_NAMESPACE}::mark", "(Tensor x, str name) -> Tensor", _keep, _like)
    found: ops.Operator = torch.ops.advisor_tflite.mark.default
    return found


MARK: Final = _operator()


def values_of(graph: Graph) -> frozenset[str]:
    """Names of the graph nodes to find again: what layers read and write, what may be integers.

    What an embedding reads is among them, so that a lookup of constant places is not computed
    ahead and its table lost.
    """
    fused = fused_operators()
    names = {site.node for site in regions_of(graph, load_capability("tflite")).sites}
    for node in find_nodes(graph).values():
        names.update(source.name for source in sources_of(node))
        names.add(end_of(node, fused).name)
    return frozenset(names)


def find_nodes(graph: Graph) -> dict[str, Node]:
    """By layer name the node that computes it, of layers without a quantized form too."""
    nodes: dict[str, Node] = {}
    for node in graph.module.graph.nodes:
        if node.op == "call_function":
            nodes.setdefault(name_of(node), node)
    return {layer.name: nodes[layer.output] for layer in graph.layers if layer.output in nodes}


def sources_of(node: Node) -> tuple[Node, ...]:
    """The activations, or token ids, that a layer reads; none of one without a quantized form."""
    found = operands(node) if can_be_layer(node) else ()
    return tuple(source for source in found if source.op != "get_attr" or is_table(node))


def is_table(node: Node) -> bool:
    """Whether the layer looks rows up, so that what it reads may be constant."""
    return LAYER_OPS.get(node.target) == "embedding"


def fused_operators() -> tuple[str, ...]:
    """Activation functions that become part of the operator before them."""
    rules = load_capability("tflite").static
    return () if rules is None else rules.fused


def end_of(node: Node, fused: Collection[str]) -> Node:
    """The activation function that the converter fuses into a layer, else the layer itself."""
    while len(node.users) == 1:
        (user,) = node.users
        if short_op(user) not in fused:
            break
        node = user
    return node


def mark(graph: Graph, values: Collection[str]) -> GraphModule:
    """The graph's module with a marker behind every node named in ``values``, before every weight
    of a layer that has no quantized form, so that nothing is computed ahead from it, and before
    what a value's twin reads, so that the two stay two."""
    module = clone(graph.module)
    for number, node in enumerate(find_twins(module, values)):
        source = node.all_input_nodes[0]
        with module.graph.inserting_before(node):
            marker = module.graph.call_function(MARK, (source, f"{NAMELESS}{number}"))
        copy_meta(source, marker)
        node.replace_input_with(source, marker)
    frozen = {(layer.output, layer.weight) for layer in graph.layers if layer.frozen}
    for node in list(module.graph.nodes):
        for source in node.all_input_nodes:
            if source.op == "get_attr" and (name_of(node), source.target) in frozen:
                with module.graph.inserting_before(node):
                    marker = module.graph.call_function(MARK, (source, NAMELESS))
                copy_meta(source, marker)
                node.replace_input_with(source, marker)
        if node.name not in values or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        with module.graph.inserting_after(node):
            marker = module.graph.call_function(MARK, (node, node.name))
        copy_meta(node, marker)
        for user in list(node.users):
            if user is not marker:
                user.replace_input_with(node, marker)
    return finish(module)


def register_lowering() -> None:
    """Teach the converter what a marker is; does nothing the second time.

    litert-torch has no public way to add an operator; these registries are where its own are.
    """
    ir = load("litert_converter.mlir.ir")
    rewriters = load(LAYOUT_PASS).rewriters
    if MARK in rewriters:
        return

    def rewrite(node: Node) -> None:
        source, name = node.args
        node.args = (source, f"{name}{CHANNELS_LAST}")

    def lower(context: Any, x: Any, name: str) -> Any:
        text = name.encode().hex()
        made = ir.Operation.create(
            "tfl.custom",
            results=[x.type],
            operands=[x],
            attributes={
                "custom_code": ir.StringAttr.get(CUSTOM_CODE),
                "custom_option": ir.Attribute.parse(f'#tfl<const_bytes: "0x{text}">'),
            },
        )
        return made.results[0]

    rewriters[MARK] = rewrite
    load("litert_torch.backend.lowerings.registry").lower(MARK)(lower)
