"""What the layers and quantized tensors of a plan are called in a converter's file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from advisor.passes.blame import locate
from advisor.passes.decompositions import decompose
from advisor.passes.graph import ROLE_KEY, Graph, name_of
from advisor.passes.layers import LAYER_OPS
from advisor.passes.ops import QUANTIZE_STATIC
from advisor.targets.ownlinear import LINEAR, own_linears
from advisor.targets.packages import quiet
from advisor.targets.reexport import reexport
from advisor.targets.unrolled import UNROLLED

RECURRENT: Final = ("lstm", "gru")
"""Kinds of layers whose operator becomes its steps."""

LAYERS: Final = frozenset({LINEAR, torch.ops.aten.convolution.default, *LAYER_OPS})
"""Operators of layers, in the spelling of ``export_steps``."""

STEP: Final = "_step_"
"""What follows a layer's name in the names of its later steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Names in the file, before a converter appends to them.

    layers: by layer name the operator that computes it. weights: by weight name the constant.
    tensors: by tensor name the quantize operators.
    """

    layers: dict[str, str] = field(default_factory=dict[str, str])
    weights: dict[str, str] = field(default_factory=dict[str, str])
    tensors: dict[str, list[str]] = field(default_factory=dict[str, list[str]])


def export_steps(
    module: GraphModule,
    source: Graph,
    tensors: tuple[Any, ...],
    table: Mapping[Any, Callable[..., Any]] | None = None,
) -> ExportedProgram:
    """The module as an exported program of fixed shapes, without recurrent operators.

    table: what else to decompose, Linears never.
    """
    fixed = replace(source, module=module, args=tensors, kwargs={}, dynamic={})
    steps = {**(table or {}), **UNROLLED}
    steps.pop(torch.ops.aten.linear.default, None)
    with quiet():
        program = decompose(reexport(module, fixed), steps)
    own_linears(program.graph)
    return program


def name_parts(program: ExportedProgram, source: Graph) -> Names:
    """Give layers and quantizers names that survive, and say what everything is called."""
    signature = program.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names = Names(weights={target: name for name, target in stored.items()})
    recurrent = {layer.weight: layer for layer in source.layers if layer.op in RECURRENT}
    own = {layer.output: layer for layer in source.layers if layer.op not in RECURRENT}
    places = {layer.name: index for index, layer in enumerate(source.layers)}
    for node in program.graph.nodes:
        custom: dict[str, Any] = node.meta.get("custom") or {}
        if node.target is QUANTIZE_STATIC:
            tensor = name_of(node)
            called = f"advisor_quantize_{len(names.tensors)}_{len(names.tensors.get(tensor, ()))}"
            names.tensors.setdefault(tensor, []).append(called)
        elif node.target in LAYERS:
            layer = recurrent.get(_weight_of(node, stored))
            if layer is None and custom.get(ROLE_KEY) == "op":
                layer = own.get(name_of(node))
            if layer is None:
                continue
            called = f"advisor_layer_{places[layer.name]}"
            if layer.name in names.layers:  # a step of an LSTM after its first
                called += f"{STEP}{node.name}"
            names.layers.setdefault(layer.name, called)
        else:
            continue
        old, node.name = node.name, called
        signature.replace_all_uses(old, called)
    return names


def _weight_of(node: Node, stored: Mapping[str, str]) -> str:
    """Name of the weight that a Linear reads, as it is or turned to float32."""
    source = node.args[1] if node.target is LINEAR else None
    if isinstance(source, Node) and source.target is torch.ops.aten._to_copy.default:
        source = source.args[0]
    if not isinstance(source, Node):
        return ""
    return stored.get(source.name, "").removesuffix("_values")


def place_of(source: Graph, program: ExportedProgram, error: BaseException) -> str:
    """Which part of the user's model an error of a converter is about, as far as it says."""
    failed = ""
    frame = error.__traceback__
    while frame is not None:
        node = frame.tb_frame.f_locals.get("node")
        if isinstance(node, Node) or type(node).__name__ == "InternalTorchIRNode":
            failed = str(getattr(node, "name", ""))
        frame = frame.tb_next
    for node in program.graph.nodes:
        if node.name == failed:
            known = {name_of(each): each for each in source.module.graph.nodes}
            found = known.get(name_of(node))
            place = f" in {locate(found)}" if found is not None else ""
            return f" (operator {node.target}){place}"
    return ""
