"""Bytes of a written file: what a plan's constants take, and the graph and companions with them."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from advisor.formats import scheme_named
from advisor.measure.terms import schemes_of
from advisor.passes.graph import name_of
from advisor.passes.layers import find_calls
from advisor.profiles.cost import weight_bytes
from advisor.search.problem import Choice
from advisor.setting import Setting
from advisor.targets.rules import FileRules


def predict_file_bytes(setting: Setting, choice: Choice, size_bytes: float) -> float | None:
    """Bytes of the file that ``compile`` writes, or None where the runtime's rules are not known.

    size_bytes: weights, scales and constants, as budgets count them.
    """
    rules = setting.capability.file
    if rules is None:
        return None
    chosen = schemes_of(setting, choice)
    total = size_bytes + _operator_bytes(setting, rules)
    for layer, scheme in chosen:
        own = setting.capability.taken(layer, scheme_named(scheme))
        rule = rules.companions(layer.op, own.name)
        channels = 0 if layer.is_product else layer.weight_shape[0]
        total += rule.layer_bytes + rule.layer_names * len(layer.name)
        total += rule.channel_bytes * channels
    schemes = {layer.name: scheme for layer, scheme in chosen}
    total += _integer_bytes(setting, rules, schemes)
    memory = setting.capability.memory
    if memory is not None and size_bytes > memory.inside_bytes:
        total += _padding(setting, rules, schemes)
    return float(total)


def _operator_bytes(setting: Setting, rules: FileRules) -> float:
    """Of the graph's operators as in float32."""
    graph = setting.graph
    calls = set(find_calls(graph.module, graph.layers).values())
    return sum(
        rules.operator_bytes
        + len(name_of(node)) * (rules.layer_names if node in calls else rules.operator_names)
        for node in graph.module.graph.nodes
        if node.op == "call_function"
    )


def _integer_bytes(setting: Setting, rules: FileRules, schemes: Mapping[str, str]) -> float:
    """Of quantizers, and whatever else a tensor of integers has with it."""
    kinds = {layer.name: layer.op for layer in setting.graph.layers}
    static = {name for name, scheme in schemes.items() if scheme_named(scheme).is_static}
    quantized = setting.regions.quantized(static)
    total = 0.0
    for site in setting.regions.sites:
        if site.tensor in quantized:
            readers = {kinds[name] for name in site.readers if name in static}
            rule = rules.integers(produced=quantized[site.tensor], readers=readers)
            total += rule.bytes + rule.names * len(site.tensor)
    return total


def _padding(setting: Setting, rules: FileRules, schemes: Mapping[str, str]) -> int:
    """What is left empty so that each large weight, and each one's scales, starts on a page."""
    total = 0
    once = {layer.weight: layer for layer in reversed(setting.graph.layers) if layer.weight}
    for layer in once.values():
        scheme = scheme_named(schemes.get(layer.name, "fp32"))
        elements = ceil(layer.weight_count * layer.weight_format(scheme).bits / 8)
        scales = weight_bytes(layer, scheme, setting.capability) - elements
        total += sum(
            -size % rules.page_bytes for size in (elements, scales) if size >= rules.page_from
        )
    return total
