"""What a whole plan's modelled time, memory and energy are made of: one function each."""

from __future__ import annotations

from functools import reduce
from operator import add

from advisor.assemble import boundary_terms, other_bytes, sum_weights, switch_terms
from advisor.indicators import Indicators
from advisor.memory import alive_bytes
from advisor.otherops import other_parts
from advisor.profiles.cost import LayerCost, process_overhead_bytes
from advisor.profiles.costparts import EnergyParts, MemoryParts
from advisor.profiles.timeparts import TimeParts
from advisor.search.problem import Choice, Evaluation, Problem, holding
from advisor.setting import Setting


def break_down(
    setting: Setting, problem: Problem, choice: Choice, evaluation: Evaluation
) -> TimeParts:
    """The parts of ``evaluation.latency_s``, which they add up to.

    Where layers were timed on this machine, the whole is: what they spend it on is not known.
    """
    if setting.measured is not None:
        return TimeParts(timed_s=evaluation.latency_s)
    total = other_parts(setting)
    for group, index in zip(setting.groups, choice, strict=True):
        scheme = setting.space.candidates[group.name][index].scheme
        for layer in setting.layers_of(group):
            total += setting.cost(layer, scheme).parts
    indicators = Indicators(setting)
    most_s, fewer = switch_terms(setting, indicators)
    terms = boundary_terms(setting, indicators) + fewer
    held = holding(problem, choice)
    return total + TimeParts(boundary_s=most_s + float(terms[held].sum()))


def break_down_memory(
    setting: Setting, problem: Problem, choice: Choice, evaluation: Evaluation
) -> MemoryParts:
    """The parts of ``evaluation.memory_bytes``, at the moment that makes it so large."""
    constants = other_bytes(setting)
    resident, opening = (
        constants + sum(terms[index] for terms, index in zip(table, choice, strict=True))
        for table in (
            sum_weights(setting, lambda cost: cost.resident_bytes),
            sum_weights(setting, lambda cost: cost.opening_bytes),
        )
    )
    scratch = {
        layer.output: setting.cost(layer, setting.space.candidates[group.name][index].scheme)
        for group, index in zip(setting.groups, choice, strict=True)
        for layer in setting.layers_of(group)
    }
    indicators = Indicators(setting)
    switch_terms(setting, indicators)  # adds indicators of its own, as the problem has them
    held = holding(problem, choice)
    moments = [
        (alive + float(terms[held[: terms.size]].sum()), _scratch_bytes(scratch.get(point)))
        for point, alive, terms in alive_bytes(setting, indicators)
    ]
    alive, needed = max(moments, key=sum, default=(0.0, 0.0))
    operators = sum(
        node.op == "call_function" and node.name in setting.shapes
        for node in setting.graph.module.graph.nodes
    )
    rules = setting.capability.memory
    runtime = process_overhead_bytes(setting.capability, operators, evaluation.size_bytes)
    parts = MemoryParts(
        weights_bytes=float(resident),
        activations_bytes=alive,
        scratch_bytes=needed,
        cache_bytes=setting.cache_bytes,
        runtime_bytes=None if rules is None else runtime,
    )
    if opening > parts.total_bytes:
        kept = min(resident, opening)
        return MemoryParts(
            weights_bytes=float(kept),
            opening_bytes=float(opening - kept),
            runtime_bytes=parts.runtime_bytes,
        )
    return parts


def _scratch_bytes(cost: LayerCost | None) -> float:
    return 0.0 if cost is None else float(cost.scratch_bytes)


def break_down_energy(setting: Setting, choice: Choice) -> EnergyParts | None:
    """The parts of the plan's energy; None where the profile publishes no figures."""
    parts = [
        setting.cost(layer, setting.space.candidates[group.name][index].scheme).energy
        for group, index in zip(setting.groups, choice, strict=True)
        for layer in setting.layers_of(group)
    ]
    known = [each for each in parts if each is not None]
    return reduce(add, known, EnergyParts()) if len(known) == len(parts) else None
