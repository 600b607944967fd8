"""Bytes of a written file: what a plan's constants take, and the graph and companions with them."""

from __future__ import annotations

from advisor.search.problem import Choice
from advisor.setting import Setting


def predict_file_bytes(setting: Setting, choice: Choice, size_bytes: float) -> float | None:
    """Bytes of the file that ``compile`` writes, or None where the runtime's rules are not known.

    size_bytes: weights, scales and constants, as budgets count them.
    """
    rules = setting.capability.file
    if rules is None:
        return None
    nodes = setting.graph.module.graph.nodes
    total = size_bytes + rules.operator_bytes * sum(node.op == "call_function" for node in nodes)
    for group, index in zip(setting.groups, choice, strict=True):
        scheme = setting.space.candidates[group.name][index].scheme
        for layer in setting.layers_of(group):
            rule = rules.companions(layer.op, scheme)
            if rule is not None:
                channels = 0 if layer.is_product else layer.weight_shape[0]
                total += rule.layer_bytes + rule.channel_bytes * channels
    return float(total)
