"""Time of everything in a model that is no layer: activations, norms, sums, attention, dispatch."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from torch.fx import Node

from advisor.passes.fusion import find_fused
from advisor.passes.graph import name_of
from advisor.passes.liveness import VIEWS
from advisor.passes.regions import short_op
from advisor.passes.shapes import TensorInfo
from advisor.profiles.cost import plain_parts
from advisor.profiles.roofline import dispatch_seconds, traffic_seconds
from advisor.profiles.timeparts import TimeParts
from advisor.setting import Setting


def other_parts(setting: Setting) -> TimeParts:
    """The time of every operator that is no layer, and of the dispatch of one forward."""
    if setting.measured is not None:
        return TimeParts(timed_s=setting.measured.rest_s)
    module = setting.graph.module
    layer_names = {layer.output for layer in setting.graph.layers}
    fused = find_fused(module, setting.graph.layers, setting.shapes, setting.capability.fusion)
    total = TimeParts(overhead_s=dispatch_seconds(setting.profile))
    for node in module.graph.nodes:
        is_layer = name_of(node) in layer_names
        if node.op != "call_function" or is_layer or node.name not in setting.shapes:
            continue
        if node in fused:
            total += _fused_time(setting, node, fused[node])
        elif short_op(node) not in VIEWS:
            total += plain_time(setting, node)
    return total


def plain_time(setting: Setting, node: Node) -> TimeParts:
    """The modelled time of an operator that is no layer and runs by itself."""
    tensors = [*_inputs(setting, node), node.name]
    return plain_parts(
        setting.profile,
        op=short_op(node),
        macs=_product_macs(node, setting.shapes),
        elements=max(setting.shapes[name].count for name in tensors),
        moved_bytes=sum(setting.bytes_of(name) for name in tensors),
        capability=setting.capability,
        threads=setting.threads,
    )


def _fused_time(setting: Setting, node: Node, held: Node) -> TimeParts:
    """Reading what the kernel does not hold yet; its output is written instead of ``held``'s."""
    read = [name for name in _inputs(setting, node) if name != held.name]
    moved = sum(setting.bytes_of(name) for name in read)
    seconds = traffic_seconds(setting.profile, activation_bytes=moved, threads=setting.threads)
    return TimeParts(memory_s=seconds)


def _inputs(setting: Setting, node: Node) -> list[str]:
    return [each.name for each in node.all_input_nodes if each.name in setting.shapes]


def _product_macs(node: Node, shapes: Mapping[str, TensorInfo]) -> int:
    """Multiply-accumulates of products of two activations."""
    op = short_op(node)
    operands = [shapes[n.name].shape for n in node.all_input_nodes[:2] if n.name in shapes]
    if len(operands) < 2:
        return 0
    if op == "scaled_dot_product_attention":
        return 2 * prod(operands[0]) * operands[1][-2]
    if op in ("matmul", "bmm", "mm", "linear"):
        return prod(shapes[node.name].shape) * operands[0][-1]
    return 0
