"""Markers: operators that keep every layer and quantizable tensor recognisable through export.

A layer's operator is replaced by a stand-in of the same signature, and a tensor that may be
quantized passes a marker that changes nothing. In ONNX both become nodes of a private domain,
which no optimisation touches and which the plan's own operators replace later.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

import torch
from torch.fx import GraphModule

from advisor.passes import ops
from advisor.passes.fx import clone, copy_meta, finish, stamp
from advisor.passes.graph import Graph, name_of
from advisor.passes.layers import LAYER_OPS, PRODUCT_OPS
from advisor.targets.onnxruntime.forms import FORMS

DOMAIN: Final = "advisor.marker"
"""Domain of marker nodes; none is left in a finished model."""

LAYER: Final = "Layer"
SITE: Final = "Site"
SITE_ROLE: Final = "site"

_NAMESPACE: Final = "advisor_ort"
_MADE_BY: Final = "targets.onnxruntime.markers"
_MOST_INPUTS: Final = 8
"""Tensor arguments of the operator with most of them."""

_TYPES: Final = ("float", "double", "float16", "bool", "uint8", "int8", "int32", "int64")


def _stand_in(target: Any) -> ops.Operator:
    """An operator with the signature, kernel and shapes of ``target``, opaque to exporters."""
    schema = target._schema
    name = f"{schema.name.rpartition('::')[2]}_{schema.overload_name or 'default'}"
    if not hasattr(torch.ops.advisor_ort, name):
        signature = str(schema)[str(schema).index("(") :]
        ops.define(f"{_NAMESPACE}::{name}", signature, target, target)
    found: ops.Operator = getattr(torch.ops.advisor_ort, name).default
    return found


def _keep(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


def _site() -> ops.Operator:
    if not hasattr(torch.ops.advisor_ort, "site"):
        ops.define(f"{_NAMESPACE}::site", "(Tensor x) -> Tensor", _keep, torch.empty_like)
    found: ops.Operator = torch.ops.advisor_ort.site.default
    return found


STAND_INS: Final[dict[Any, ops.Operator]] = {
    target: _stand_in(target) for target in (*LAYER_OPS, *PRODUCT_OPS)
}
_SITE_OP: Final = _site()


def mark(graph: Graph, sites: Collection[str]) -> GraphModule:
    """The graph's module with stand-ins for its layers and a marker behind every site.

    sites: names of graph nodes.
    """
    module = clone(graph.module)
    layers = {layer.output for layer in graph.layers if layer.frozen is None and layer.op in FORMS}
    for node in list(module.graph.nodes):
        if node.target in STAND_INS and name_of(node) in layers:
            stamp(node, made_by=_MADE_BY, name=name_of(node), role="op")
            node.target = STAND_INS[node.target]
        if node.name not in sites:
            continue
        with module.graph.inserting_after(node):
            site = module.graph.call_function(_SITE_OP, (node,))
        copy_meta(node, site)
        stamp(site, made_by=_MADE_BY, name=name_of(node), role=SITE_ROLE)
        for user in list(node.users):
            if user is not site:
                user.replace_input_with(node, site)
    return finish(module)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """``custom_translation_table`` of torch.onnx.export for every marker.

    A layer's node has the tensor arguments of its operator, in order, without those left out.
    """
    layer, site = _marker(LAYER, 1), _marker(SITE, 1)
    table: dict[Callable[..., Any], Callable[..., Any]] = {_SITE_OP: _one(site)}
    for target, stand_in in STAND_INS.items():
        outputs = len(target._schema.returns)
        write = layer if outputs == 1 else _marker(LAYER, outputs)
        table[stand_in] = _translation(write, target)
    return table


def _one(write: Callable[..., Any]) -> Callable[..., Any]:
    def translate(x: Any) -> Any:
        return write(x)

    return translate


def _translation(write: Callable[..., Any], target: Any) -> Callable[..., Any]:
    names = [argument.name for argument in target._schema.arguments]

    def translate(*args: Any, **kwargs: Any) -> Any:
        given = [*args, *(kwargs[name] for name in names if name in kwargs)]
        return write(*(value for value in given if hasattr(value, "dtype")))

    return translate


def _marker(kind: str, outputs: int) -> Callable[..., Any]:
    """A marker as onnxscript calls it: any tensors in, ``outputs`` of any kind out."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    optional = OpSchema.FormalParameterOption.Optional
    types = [f"tensor({kind})" for kind in _TYPES]
    variables = [f"T{index}" for index in range(_MOST_INPUTS + outputs)]
    schema = OpSchema(
        kind,
        DOMAIN,
        1,
        inputs=[
            OpSchema.FormalParameter(f"x{index}", variables[index], param_option=optional)
            for index in range(_MOST_INPUTS)
        ],
        outputs=[
            OpSchema.FormalParameter(f"y{index}", variables[_MOST_INPUTS + index])
            for index in range(outputs)
        ],
        type_constraints=[(variable, types, "") for variable in variables],
        attributes=[],
    )
    return Op(Opset(DOMAIN, 1), kind, schema)
