"""A quantized graph in, an ONNX model in memory out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from torch.fx import Node

from advisor.errors import UnsupportedError
from advisor.formats import scheme_named
from advisor.passes.fx import argument, attribute
from advisor.passes.graph import Layer, QuantizedGraph
from advisor.passes.layers import find_calls
from advisor.targets.onnxruntime.fences import fence_floats
from advisor.targets.onnxruntime.forms import FORMS
from advisor.targets.onnxruntime.forms.builder import MICROSOFT, Builder
from advisor.targets.onnxruntime.forms.form import Call
from advisor.targets.onnxruntime.forms.weights import array_of
from advisor.targets.onnxruntime.markers import DOMAIN, LAYER
from advisor.targets.onnxruntime.rewrite import replace_value
from advisor.targets.onnxruntime.sites import write_site
from advisor.targets.onnxruntime.skeleton import OPSET, skeleton_of
from advisor.targets.onnxruntime.tidy import NAME_PROPERTY
from advisor.targets.uses import find_uses, sites_of

if TYPE_CHECKING:
    import onnx_ir as ir

IR_VERSION: Final = 10
TWO_BIT_VERSIONS: Final = (25, 13)
"""Opset and IR version that first have two-bit integers."""


class Writes(Protocol):
    """A form, as far as writing goes."""

    @property
    def write(self) -> Callable[[Builder, Call], tuple[ir.Value, ...]]:
        """Adds a layer's nodes and gives what takes the place of its marker's outputs."""
        ...


def export_onnx(graph: QuantizedGraph) -> ir.Model:
    """The ONNX model of ``graph``: inputs, outputs, layers and dimensions under stable names.

    The first call for a float graph exports it through torch; later plans for the same graph only
    fill in its layers and quantizers.

    Raises:
        UnsupportedError: a layer has a form no kernel of ONNX Runtime takes.
        VerificationError: a dimension that should be dynamic became fixed.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    uses = find_uses(graph.module)
    model = skeleton_of(graph.float_graph, sites_of(uses)).clone()
    used = Counter(str(node.name) for node in model.graph)
    calls = calls_of(graph)
    for marker in [node for node in model.graph if node.domain == DOMAIN]:
        name = marker.metadata_props[NAME_PROPERTY]
        if marker.op_type == LAYER:
            used[name] = 0
            build = Builder(model=model, before=marker, name=name, used=used)
            write_layer(build, marker, calls[name], graph, FORMS)
        else:
            write_site(model, marker, uses.get(name), used)
        model.graph.remove(marker, safe=True)
    fence_floats(model, used)
    RemoveUnusedNodesPass()(model)
    _set_versions(model)
    return model


def calls_of(graph: QuantizedGraph) -> dict[str, tuple[tuple[Layer, ...], Node, Node]]:
    """By node name its layers, itself in the float graph and in the quantized one."""
    layers = graph.float_graph.layers
    before = find_calls(graph.float_graph.module, layers)
    after = find_calls(graph.module, layers)
    return {
        layer.output: (
            tuple(other for other in layers if other.output == layer.output),
            before[layer.name],
            after[layer.name],
        )
        for layer in layers
        if layer.name in before and layer.name in after
    }


def write_layer(
    build: Builder,
    marker: ir.Node,
    call: tuple[tuple[Layer, ...], Node, Node],
    graph: QuantizedGraph,
    forms: Mapping[str, Writes],
) -> None:
    """Put what a form writes in the place of a layer's marker.

    Raises:
        UnsupportedError: the integers of the layer are not in the graph, or the form refuses it.
    """
    (layer, *_), before, after = call
    scheme = scheme_named(graph.assignment[layer.name].scheme)
    table = graph.weights.get(layer.weight)
    if table is None and scheme.weight.dtype != "float32":
        raise UnsupportedError(
            f"{layer.name} is {scheme.name}, but its integers are not in the graph"
        )
    inputs = tuple(value for value in marker.inputs if value is not None)
    sharing = [other for other in graph.float_graph.layers if other.weight == layer.weight]
    results = forms[layer.op].write(
        build,
        Call(
            layer=layer,
            scheme=scheme,
            node=before,
            inputs=inputs,
            table=table,
            bias=_bias(build, layer, inputs, after, graph),
            is_shared=len(sharing) > 1,
            layers=call[0],
            tables=graph.weights,
        ),
    )
    for old, new in zip(marker.outputs, results, strict=False):
        new.shape, new.type = old.shape, old.type
        replace_value(build.model, old, new)


def _bias(
    build: Builder,
    layer: Layer,
    inputs: tuple[ir.Value, ...],
    after: Node,
    graph: QuantizedGraph,
) -> ir.Value | None:
    """The layer's bias: the planned one where the plan changes it, else the model's own."""
    if layer.op == "embedding" or len(inputs) < 3:  # input, weight, bias
        return None
    planned = argument(after, 2)
    if not isinstance(planned, Node) or planned.op != "get_attr" or layer.bias is None:
        return inputs[2]
    value = attribute(graph.module, str(planned.target))
    if value is attribute(graph.float_graph.module, layer.bias):
        return inputs[2]
    return build.constant(f"{layer.name}.bias_planned", array_of(value))


def _set_versions(model: ir.Model) -> None:
    """Opsets that the nodes need, and no others."""
    import onnx_ir as ir

    kinds = {value.dtype for value in model.graph.initializers.values()}
    opset, version = TWO_BIT_VERSIONS if ir.DataType.INT2 in kinds else (OPSET, IR_VERSION)
    domains = {node.domain for node in model.graph}
    model.graph.opset_imports.clear()
    model.graph.opset_imports[""] = opset
    if MICROSOFT in domains:
        model.graph.opset_imports[MICROSOFT] = 1
    model.ir_version = version
