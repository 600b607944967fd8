"""Turn a graph, a runtime, a profile and sensitivities into the optimisation problem."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from advisor.formats import DTYPE_BITS, scheme_named, weight_alone
from advisor.indicators import Indicators
from advisor.memory import alive_bytes
from advisor.otherops import other_parts, plain_time
from advisor.partitions import find_crossings
from advisor.passes.fx import constant_value
from advisor.passes.graph import Graph, Layer, name_of
from advisor.profiles.cost import LayerCost
from advisor.profiles.roofline import boundary_seconds, switch_seconds
from advisor.search.problem import Candidate, FloatArray, Linear, Problem
from advisor.setting import Setting
from advisor.targets.capability import Capability

aten = torch.ops.aten

if TYPE_CHECKING:
    from advisor.passes.sensitivity import Column, Sensitivity


def build_problem(setting: Setting, sensitivity: Sensitivity | None = None) -> Problem:
    """The problem; without sensitivities the divergence is zero, enough for feasibility."""
    candidates = tuple(setting.space.candidates[group.name] for group in setting.groups)
    indicators = Indicators(setting)
    switches_s, fewer_switches = switch_terms(setting, indicators)
    latency = _sum_layers(setting, lambda cost: cost.latency_s)
    energies = [cost.energy_j for cost in setting.costs.values()]
    energy = None if None in energies else _sum_layers(setting, lambda cost: cost.energy_j or 0.0)
    indicated = len(indicators.all)
    return Problem(
        groups=tuple(group.name for group in setting.groups),
        candidates=candidates,
        indicators=tuple(indicators.all),
        size_bytes=Linear(
            constant=other_bytes(setting),
            per_group=sum_weights(setting, lambda cost: cost.size_bytes),
            per_indicator=np.zeros(indicated),
        ),
        latency_s=Linear(
            constant=other_parts(setting).seconds + switches_s,
            per_group=latency,
            per_indicator=boundary_terms(setting, indicators) + fewer_switches,
        ),
        memory_bytes=_memory_points(setting, indicators),
        divergence=Linear(
            per_group=_layer_divergences(setting, sensitivity),
            per_indicator=_tensor_divergences(setting, indicators, sensitivity),
        ),
        energy_j=None
        if energy is None
        else Linear(per_group=energy, per_indicator=np.zeros(indicated)),
    )


def build_rescaled(
    setting: Setting, graph: Graph, sensitivity: Sensitivity | None = None
) -> Problem:
    """The problem of the same layers in a graph where some tensors take a multiplication more.

    Where seconds are measured, such a multiplication counts as long as quantizing that tensor,
    which is as short an operator that reads as much, or as modelled where that was not measured.
    """
    other = setting.with_graph(graph)
    measured = setting.measured
    if measured is not None:
        before = {node.name: node.target for node in setting.graph.module.graph.nodes}
        nodes = graph.module.graph.find_nodes(op="call_function", target=aten.mul.Tensor)
        added = [node for node in nodes if before.get(node.name) is not node.target]
        seconds = (
            measured.quantize_s.get(name_of(node), plain_time(other, node).seconds)
            for node in added
        )
        other = replace(other, measured=replace(measured, rest_s=measured.rest_s + sum(seconds)))
    return build_problem(other, sensitivity)


def weight_column(layer: Layer, candidate: Candidate) -> Column:
    """Key of a layer's weight error; schemes that round the weight alike share it."""
    alone = weight_alone(scheme_named(candidate.scheme))
    return ("weight", layer.name, f"{alone.name}/{candidate.algorithm}")


def error_columns(layer: Layer, candidate: Candidate, capability: Capability) -> list[Column]:
    """Keys of the errors that a layer makes wherever its tensors are floats: together, one sum.

    Empty for float32. Schemes that treat the input alike share its column.
    """
    scheme = capability.taken(layer, scheme_named(candidate.scheme))
    columns = [] if scheme.weight.dtype == "float32" else [weight_column(layer, candidate)]
    if scheme.is_dynamic:
        columns.append(("dynamic", layer.name, capability.dynamic[scheme.name].of(layer).label))
    return columns


def _sum_layers(setting: Setting, quantity: _Quantity) -> tuple[FloatArray, ...]:
    """Per group and candidate, the sum over the group's layers."""
    return tuple(
        np.array(
            [
                sum(quantity(setting.cost(layer, option.scheme)) for layer in setting.layers_of(g))
                for option in setting.space.candidates[g.name]
            ],
            dtype=np.float64,
        )
        for g in setting.groups
    )


def sum_weights(setting: Setting, quantity: _Quantity) -> tuple[FloatArray, ...]:
    """Per group and candidate, the sum over the group's distinct weights (tied ones once)."""
    found: list[FloatArray] = []
    for group in setting.groups:
        once = {layer.weight: layer for layer in reversed(setting.layers_of(group))}
        options = setting.space.candidates[group.name]
        found.append(
            np.array(
                [
                    sum(quantity(setting.cost(layer, option.scheme)) for layer in once.values())
                    for option in options
                ],
                dtype=np.float64,
            )
        )
    return tuple(found)


def other_bytes(setting: Setting) -> float:
    """Bytes on disk of every constant that is no layer's weight: biases, norms, tables."""
    weights = {layer.weight for layer in setting.graph.layers}
    width = DTYPE_BITS[setting.capability.float_dtype] // 8
    total, seen = 0, set[str]()
    for node in setting.graph.module.graph.find_nodes(op="get_attr"):
        value = constant_value(setting.graph.module, node)
        target = str(node.target)
        if value is None or target in weights or target in seen:
            continue
        seen.add(target)
        total += value.numel() * (width if value.is_floating_point() else value.element_size())
    return float(total)


def _memory_points(setting: Setting, indicators: Indicators) -> tuple[Linear, ...]:
    """What is in memory at every moment that can be the peak: opening the model, and each point.

    Weights as the runtime keeps them, the tensors alive with what its allocator adds to them, what
    a layer needs while it runs, and a decoder's cache. The runtime itself is not in it: see
    ``profiles.cost.process_overhead_bytes``.
    """
    resident = sum_weights(setting, lambda cost: cost.resident_bytes)
    scratch = {
        layer.output: (index, layer)
        for index, group in enumerate(setting.groups)
        for layer in setting.layers_of(group)
    }
    constant = other_bytes(setting)
    running = constant + setting.cache_bytes
    points: list[Linear] = []
    seen: set[tuple[object, ...]] = set()
    for point, alive, terms in alive_bytes(setting, indicators):
        per_group = list(resident)
        extra: tuple[float, ...] = ()
        if point in scratch:
            index, layer = scratch[point]
            options = setting.space.candidates[setting.groups[index].name]
            extra = tuple(setting.cost(layer, o.scheme).scratch_bytes for o in options)
            per_group[index] = resident[index] + np.array(extra, dtype=np.float64)
        total = running + alive
        key = (total, terms.tobytes(), point if any(extra) else "")
        if key not in seen:
            seen.add(key)
            points.append(Linear(constant=total, per_group=tuple(per_group), per_indicator=terms))
    opening = Linear(
        constant=constant,
        per_group=sum_weights(setting, lambda cost: cost.opening_bytes),
        per_indicator=np.zeros(len(indicators.all)),
    )
    return (opening, *points)


def boundary_terms(setting: Setting, indicators: Indicators) -> FloatArray:
    """Seconds of quantizing a tensor on its own, and of turning an integer one into floats.

    Where measured, also what an operator without weights saves or loses on integers.
    """
    terms = np.zeros(len(indicators.all))
    if setting.measured is not None:
        for seconds, table in (
            (setting.measured.quantize_s, indicators.enters),
            (setting.measured.dequantize_s, indicators.leaves),
            (setting.measured.integer_s, indicators.produced),
        ):
            for tensor, value in seconds.items():
                terms[table[tensor]] += value
        return terms
    width = DTYPE_BITS[setting.capability.float_dtype] // 8
    for site in setting.regions.sites:
        elements = setting.shapes[site.node].count
        for table, read, written in ((indicators.enters, width, 1), (indicators.leaves, 1, width)):
            if site.tensor in table:
                terms[table[site.tensor]] += boundary_seconds(
                    setting.profile,
                    elements=elements,
                    from_element_bytes=read,
                    to_element_bytes=written,
                    threads=setting.threads,
                )
    return terms


def switch_terms(setting: Setting, indicators: Indicators) -> tuple[float, FloatArray]:
    """Seconds of passing between the runtime's delegate and its own kernels: at most, and less by
    indicator. Measured costs have them inside. Adds the indicators."""
    rules = setting.capability.delegate
    if rules is None or setting.measured is not None:
        return 0.0, np.zeros(len(indicators.all))
    crossings = find_crossings(setting, indicators)
    each_s = switch_seconds(setting.profile, rules.launches)
    terms = np.zeros(len(indicators.all))
    terms[list(crossings.together)] = -each_s
    return crossings.fixed * each_s, terms


def _layer_divergences(setting: Setting, sensitivity: Sensitivity | None) -> tuple[FloatArray, ...]:
    found: list[FloatArray] = []
    for group in setting.groups:
        values: list[float] = []
        for option in setting.space.candidates[group.name]:
            columns = [
                column
                for layer in setting.layers_of(group)
                for column in error_columns(layer, option, setting.capability)
            ]
            known = sensitivity is not None and columns
            values.append(sensitivity.divergence(*columns) if sensitivity and known else 0.0)
        found.append(np.array(values, dtype=np.float64))
    return tuple(found)


def _tensor_divergences(
    setting: Setting, indicators: Indicators, sensitivity: Sensitivity | None
) -> FloatArray:
    terms = np.zeros(len(indicators.all))
    if sensitivity is None:
        return terms
    for tensor, index in indicators.produced.items():
        if ("tensor", tensor, "") in sensitivity.scores:
            terms[index] += sensitivity.divergence(("tensor", tensor, ""))
    for (tensor, reader), index in indicators.edges.items():
        terms[index] += sensitivity.divergence(("edge", tensor, reader))
    return terms


if TYPE_CHECKING:
    from collections.abc import Callable

    _Quantity = Callable[[LayerCost], float]
