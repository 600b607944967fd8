"""Which operators a runtime's delegate computes, and into how many parts that splits the model.

Told from the graph, which has none of the operators that a converter adds, such as those that move
channels to the end: one more part may begin or end with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch.fx import Node

from advisor.formats import scheme_named
from advisor.indicators import Indicators
from advisor.passes.graph import name_of
from advisor.passes.layers import find_calls
from advisor.passes.liveness import VIEWS
from advisor.passes.regions import is_float_tensor, short_op
from advisor.search.problem import Choice, Literal
from advisor.setting import Setting

UNSEEN: Final = VIEWS - {"expand"}
"""Operators that only give a tensor another shape: both sides have them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operator, in execution order. sources: the steps whose tensors it reads.

    layer: the layer it computes, "" of other operators. taken: whether the delegate computes it;
    None where that depends on the layer's scheme.
    """

    name: str
    sources: tuple[int, ...]
    layer: str
    taken: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossings:
    """Tensors that pass from the delegate to the runtime's own kernels or back.

    Their number is ``fixed`` less the indicators that hold: each says that a tensor's maker and
    readers are all on one side.
    """

    fixed: int
    together: tuple[int, ...]


def steps_of(setting: Setting) -> tuple[Step, ...]:
    """The operators that run, without those on constants."""
    capability = setting.capability
    assert capability.delegate is not None  # callers ask only then
    calls = find_calls(setting.graph.module, setting.graph.layers)
    layers = {calls[layer.name]: layer for layer in setting.graph.layers if layer.name in calls}
    options = {
        name: [option.scheme for option in setting.space.candidates[group.name]]
        for group in setting.groups
        for name in group.layers
    }
    rules = capability.static
    fused = () if rules is None else rules.fused
    ends = set(layers)  # layers, and the functions that become part of them
    steps: list[Step] = []
    made: dict[Node, tuple[int, ...]] = {}  # by node the steps its value is from; inputs have none
    for node in setting.graph.module.graph.nodes:
        if node.op == "placeholder":
            made[node] = ()
        if node.op != "call_function" or not any(n in made for n in node.all_input_nodes):
            continue
        sources = tuple(dict.fromkeys(i for n in node.all_input_nodes for i in made.get(n, ())))
        is_fused = short_op(node) in fused and node.all_input_nodes[0] in ends
        if is_fused and len(node.all_input_nodes[0].users) == 1:
            ends.add(node)
            made[node] = sources
            continue
        if node not in layers and (short_op(node) in UNSEEN or node.name not in setting.shapes):
            made[node] = sources
            continue
        taken: bool | None = short_op(node) not in capability.delegate.left_out
        taken = taken and is_float_tensor(node) and _reads_floats(node)
        layer = layers.get(node)
        if layer is not None:
            sides = {
                not capability.leaves_out(layer, scheme_named(scheme))
                for scheme in options[layer.name]
            }
            taken = sides.pop() if len(sides) == 1 else None
        made[node] = (len(steps),)
        steps.append(
            Step(
                name=name_of(node),
                sources=sources,
                layer="" if layer is None else layer.name,
                taken=taken,
            )
        )
    return tuple(steps)


def count_partitions(setting: Setting, choice: Choice) -> int | None:
    """Into how many parts the delegate's share of the model is split; None without a delegate."""
    if setting.capability.delegate is None:
        return None
    layers = {layer.name: layer for layer in setting.graph.layers}
    schemes = {
        name: setting.space.candidates[group.name][index].scheme
        for group, index in zip(setting.groups, choice, strict=True)
        for name in group.layers
    }
    steps = steps_of(setting)
    taken = [
        step.taken
        if step.taken is not None
        else not setting.capability.leaves_out(
            layers[step.layer], scheme_named(schemes[step.layer])
        )
        for step in steps
    ]
    return count_parts([step.sources for step in steps], taken)


def count_parts(sources: Sequence[Sequence[int]], taken: Sequence[bool]) -> int:
    """Parts of a delegate, formed as TensorFlow Lite forms them.

    It takes turns: all operators of one side that can run, whatever they wait for among
    themselves, are one part; then those of the other side (graph_info.cc,
    PartitionGraphIntoNodeSubsets). sources: by operator, those it waits for.
    """
    waiting = list(range(len(taken)))
    done: set[int] = set()
    parts = 0
    while waiting:
        side = taken[next(i for i in waiting if done.issuperset(sources[i]))]
        parts += side
        for index in list(waiting):  # in execution order, so that one pass finds them all
            if taken[index] == side and done.issuperset(sources[index]):
                done.add(index)
                waiting.remove(index)
    return parts


def find_crossings(setting: Setting, indicators: Indicators) -> Crossings:
    """The tensors that may pass between the two sides; adds indicators behind those there are."""
    steps = steps_of(setting)
    literals = _left_literals(setting)
    fixed = 0
    together: list[int] = []
    for index, step in enumerate(steps):
        users = [user for user in steps if index in user.sources]
        if not users:
            continue
        members = [step, *users]
        sides = {member.taken for member in members}
        open_layers = [literals[m.layer] for m in members if m.taken is None]
        if not open_layers:
            fixed += len(sides) > 1
            continue
        fixed += 1
        for taken in (True, False):
            if (not taken) not in sides:
                name = f"{step.name} and its readers are {'taken' if taken else 'left out'}"
                together.append(indicators.add(name, [_flip(x, taken) for x in open_layers]))
    return Crossings(fixed=fixed, together=tuple(together))


def _left_literals(setting: Setting) -> Mapping[str, Literal]:
    """By layer name what holds when the delegate leaves it out."""
    found: dict[str, Literal] = {}
    for index, group in enumerate(setting.groups):
        options = setting.space.candidates[group.name]
        for layer in setting.layers_of(group):
            left = tuple(
                i
                for i, option in enumerate(options)
                if setting.capability.leaves_out(layer, scheme_named(option.scheme))
            )
            found[layer.name] = Literal(group=index, candidates=left)
    return found


def _flip(literal: Literal, negated: bool) -> Literal:
    return Literal(group=literal.group, candidates=literal.candidates, negated=negated)


def _reads_floats(node: Node) -> bool:
    """Whether its first operand is floats; a delegate of floats converts nothing else."""
    first = node.all_input_nodes[0].meta.get("val")
    return isinstance(first, torch.Tensor) and first.is_floating_point()
