"""Who must decide together: Groups of layers, and TensorClasses of activation tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import networkx as nx

from advisor.passes.fx import placeholders
from advisor.passes.graph import ActivationParams, Graph, name_of
from advisor.passes.regions import is_float_tensor, short_op
from advisor.targets.capability import Capability


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Layers that must take the same scheme; named by the first of them."""

    name: str
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorClass:
    """Tensors that must share scale and zero point while they are statically quantized.

    fixed: what these are, where the runtime allows no others.
    """

    tensors: tuple[str, ...]
    fixed: ActivationParams | None = None


def group_layers(graph: Graph, capability: Capability) -> tuple[Group, ...]:
    """Groups in execution order.

    Two layers share a group when they read the same weight (tied), when they are the two weights
    of one recurrent operator, or when the runtime merges operators that read the same tensor
    (``Capability.fuse_siblings``). Nothing else joins them: an addition after two layers does not.
    """
    links: nx.Graph[str] = nx.Graph()
    links.add_nodes_from(layer.name for layer in graph.layers)
    by_weight: dict[str, str] = {}
    by_input: dict[tuple[str, str], str] = {}
    by_output: dict[str, str] = {}
    for layer in graph.layers:
        if layer.weight:
            links.add_edge(layer.name, by_weight.setdefault(layer.weight, layer.name))
        if layer.frozen is None:  # one operator reads both weights of a recurrent layer
            links.add_edge(layer.name, by_output.setdefault(layer.output, layer.name))
        if layer.op in capability.fuse_siblings and layer.frozen is None:
            links.add_edge(layer.name, by_input.setdefault((layer.op, layer.input), layer.name))
    order = {layer.name: index for index, layer in enumerate(graph.layers)}
    return tuple(Group(name=members[0], layers=members) for members in _components(links, order))


def class_tensors(graph: Graph, capability: Capability) -> tuple[TensorClass, ...]:
    """Classes of two tensors or more, and those of a fixed scale, in execution order.

    Operators listed in ``StaticRules.shared`` (max-pool, reshape, concat, ...) move numbers
    without computing new ones, so their inputs and output use one scale. An addition does
    compute: its inputs keep scales of their own.
    """
    rules = capability.static
    if rules is None:
        return ()
    links: nx.Graph[str] = nx.Graph()
    order: dict[str, int] = {}
    computed: dict[str, ActivationParams | None] = {}  # by tensor that is not only moved
    for node in (*placeholders(graph.module), *graph.module.graph.nodes):
        order.setdefault(name_of(node), len(order))
    for node in graph.module.graph.nodes:
        if not is_float_tensor(node):
            continue
        if short_op(node) in rules.shared:
            for source in node.all_input_nodes:
                if is_float_tensor(source):
                    links.add_edge(name_of(node), name_of(source))
            continue
        fixed = rules.fixed_output(short_op(node))
        computed[name_of(node)] = None if fixed is None else fixed.params(rules.dtype)
        if fixed is not None:
            links.add_node(name_of(node))
    classes: list[TensorClass] = []
    for members in _components(links, order):
        # Where one is fixed and another is not, neither can be integers with the other.
        found = {computed[name] for name in members if name in computed}
        fixed_params = found.pop() if len(found) == 1 else None
        if len(members) > 1 or fixed_params is not None:
            classes.append(TensorClass(tensors=members, fixed=fixed_params))
    return tuple(classes)


def _components(links: nx.Graph[str], order: dict[str, int]) -> Iterable[tuple[str, ...]]:
    components = [sorted(part, key=order.__getitem__) for part in nx.connected_components(links)]
    return (tuple(part) for part in sorted(components, key=lambda part: order[part[0]]))
