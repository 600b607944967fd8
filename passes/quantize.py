"""Apply an assignment to a graph: the one graph that is simulated and shipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch.fx import GraphModule, Node

from advisor.formats import Scheme, scheme_named
from advisor.passes import ops as _ops
from advisor.passes.apply import dequantize, dequantize_arguments
from advisor.passes.fx import attribute, clone, copy_meta, finish, insert_constant, stamp
from advisor.passes.graph import (
    ActivationParams,
    Graph,
    Layer,
    LayerAssignment,
    QuantizedGraph,
    WeightTable,
)
from advisor.passes.layers import find_calls, input_argument, operands, weight_argument
from advisor.passes.ops import (
    FLOAT8,
    FLOAT8_MAX,
    INTEGER_RANGE,
    QUANTIZE_DEQUANTIZE_DYNAMIC,
)
from advisor.passes.recurrent import LSTM, LSTM_DYNAMIC
from advisor.passes.regions import Regions, Site
from advisor.passes.rounding.store import RoundedWeights
from advisor.targets.capability import DynamicRules, StaticRules

_ = _ops  # registers the advisor:: operators
MADE_BY: Final = "quantize"
BIAS_STEPS: Final = 2**30
"""Largest int32 bias: half of what fits, so that a correction still does."""


def round_weights(
    graph: Graph,
    assignment: Mapping[str, LayerAssignment],
    rounded: RoundedWeights | None = None,
) -> dict[str, WeightTable]:
    """The table of every layer whose scheme changes its weight, by weight name.

    rounded: where tables are kept between calls; None: every weight is rounded anew.
    """
    rounded = RoundedWeights(graph, limit_bytes=0) if rounded is None else rounded
    tables: dict[str, WeightTable] = {}
    for layer in graph.layers:
        scheme = scheme_named(assignment[layer.name].scheme)
        if scheme.weight.dtype != "float32" and layer.weight not in tables:
            algorithm = assignment[layer.name].algorithm
            tables[layer.weight] = rounded.get(layer.weight, layer.weight_format(scheme), algorithm)
    return tables


def fit_biases(
    graph: Graph,
    assignment: Mapping[str, LayerAssignment],
    tables: Mapping[str, WeightTable],
    params: Mapping[str, ActivationParams],
    rules: StaticRules | None,
) -> dict[str, WeightTable]:
    """The tables, with a wider scale wherever a bias would not fit into int32.

    A bias kept as int32 counts steps of input scale x weight scale. A channel with next to no
    weight (a dead one, after batch norm is folded) has steps so small that its bias overflows;
    its weights contribute nothing, so a coarser scale for them costs nothing.
    """
    fitted = dict(tables)
    for layer in graph.layers:
        static = scheme_named(assignment[layer.name].scheme).is_static
        if rules is None or not static or layer.bias is None or layer.op not in rules.int32_bias:
            continue
        table = fitted[layer.weight]
        assert table.scale is not None  # a static scheme has integer weights
        weight: torch.Tensor = attribute(graph.module, layer.weight)
        bias: torch.Tensor = attribute(graph.module, layer.bias)
        least = bias.abs() / (BIAS_STEPS * params[layer.input].scale)
        if bool((table.scale >= least).all()):
            continue
        scale = torch.maximum(table.scale.expand_as(least), least)
        narrow = (table.scale < least).reshape(-1, *[1] * (weight.ndim - 1))
        coarse = (weight / scale.reshape(narrow.shape)).round().to(torch.int8)
        fitted[layer.weight] = WeightTable(
            values=torch.where(narrow, coarse, table.values), scale=scale
        )
    return fitted


def correct_biases(
    graph: Graph,
    assignment: Mapping[str, LayerAssignment],
    tables: Mapping[str, WeightTable],
    input_means: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Biases that cancel the mean error of their layer's rounded weight, by layer name.

    b' = b - Σ (Q(w) - w) E[x] per output channel (Nagel et al. 2019, arXiv:1906.04721, section
    4.2); for convolutions over all kernel positions, as if no position were padded. Only layers
    that have a bias are corrected.
    """
    corrected: dict[str, torch.Tensor] = {}
    for layer in graph.layers:
        scheme = scheme_named(assignment[layer.name].scheme)
        if layer.bias is None or scheme.weight.is_float or layer.name not in input_means:
            continue
        weight: torch.Tensor = attribute(graph.module, layer.weight)
        fmt = layer.weight_format(scheme)
        change = dequantize(tables[layer.weight], fmt, layer.weight_shape) - weight
        mean = input_means[layer.name]
        per_input = change.flatten(2).sum(-1) if change.ndim > 2 else change
        if layer.groups > 1:
            outputs = layer.weight_shape[0] // layer.groups
            mean_rows = mean.reshape(layer.groups, -1).repeat_interleave(outputs, dim=0)
            shift = (per_input * mean_rows).sum(dim=1)
        else:
            shift = per_input @ mean
        bias: torch.Tensor = attribute(graph.module, layer.bias)
        corrected[layer.name] = bias - shift
    return corrected


def quantize(
    graph: Graph,
    assignment: Mapping[str, LayerAssignment],
    *,
    weights: Mapping[str, WeightTable],
    params: Mapping[str, ActivationParams],
    regions: Regions,
    rules: StaticRules | None,
    dynamic: Mapping[str, DynamicRules] | None = None,
    biases: Mapping[str, torch.Tensor] | None = None,
) -> QuantizedGraph:
    """Build the quantized graph.

    Given: a normalised graph, a scheme per layer, the integers, the static parameters of every
    tensor that can be quantized, the runtime's dynamic rules by scheme. Result: each weight is
    dequantized from its integers, each quantized tensor passes quantize_static and
    dequantize_static, the input of each dynamic layer quantize_dequantize_dynamic; nothing is
    rounded here but biases that the runtime keeps as int32.
    """
    module = clone(graph.module)
    calls = find_calls(module, graph.layers)
    layers = {layer.name: layer for layer in graph.layers}
    by_format = _static_layers(assignment)
    static, narrow = by_format["integers"], by_format["float8"]
    quantized = regions.quantized(static)
    _replace_weights(module, calls, layers, assignment, weights)
    _replace_biases(
        module,
        calls,
        layers,
        static,
        weights=weights,
        params=params,
        rules=rules,
        corrected=biases or {},
    )
    by_name = {site.tensor: site for site in regions.sites}
    for tensor, for_all in quantized.items():
        _insert_static(module, by_name[tensor], params[tensor], calls, static, for_all)
    activations = {tensor: params[tensor] for tensor in quantized}
    for site in regions.sites:
        if narrow.isdisjoint(site.readers):
            continue
        known = float8_params(params[site.tensor])
        name = float8_name(site.tensor)
        _insert_static(module, replace(site, tensor=name), known, calls, narrow, False)
        activations[name] = known
    found = {
        name: (dynamic or {})[choice.scheme].of(layers[name])
        for name, choice in assignment.items()
        if scheme_named(choice.scheme).is_dynamic and layers[name].op != "embedding"
    }
    _insert_dynamic(module, calls, found)
    return QuantizedGraph(
        module=clone(finish(module)),  # a copy has only what is read: no float weights
        float_graph=graph,
        assignment=dict(assignment),
        weights=dict(weights),
        activations=activations,
        dynamic=found,
        biases=dict(biases or {}),
    )


def float8_name(tensor: str) -> str:
    """Name of a tensor as eight-bit floats, which is beside the same tensor as integers."""
    return f"{tensor}.float8"


def float8_params(params: ActivationParams) -> ActivationParams:
    """For the range that symmetric int8 ``params`` span, in float8."""
    largest = np.float32(params.scale) * np.float32(INTEGER_RANGE["int8"][1])
    return ActivationParams(
        scale=float(largest / np.float32(FLOAT8_MAX)), zero_point=0, dtype="float8_e4m3"
    )


def _static_layers(assignment: Mapping[str, LayerAssignment]) -> dict[str, set[str]]:
    """Layers with static activations, by what these are."""
    found: dict[str, set[str]] = {"integers": set(), "float8": set()}
    for name, choice in assignment.items():
        scheme = scheme_named(choice.scheme)
        if scheme.is_static and scheme.activation is not None:
            is_float8 = scheme.activation.dtype in FLOAT8
            found["float8" if is_float8 else "integers"].add(name)
    return found


def _replace_weights(
    module: GraphModule,
    calls: Mapping[str, Node],
    layers: Mapping[str, Layer],
    assignment: Mapping[str, LayerAssignment],
    weights: Mapping[str, WeightTable],
) -> None:
    made: dict[str, Node] = {}
    for name, node in calls.items():
        layer = layers.get(name)
        if layer is None:
            continue
        scheme = scheme_named(assignment[name].scheme)
        stamp(node, made_by=MADE_BY, name=layer.output, role="op")
        if scheme.weight.dtype == "float32":
            continue
        old = weight_argument(node, layer)
        if layer.weight not in made:
            first = next(iter(module.graph.nodes))
            made[layer.weight] = _weight_node(module, first, old, layer, scheme, weights)
        node.replace_input_with(old, made[layer.weight])


def _weight_node(
    module: GraphModule,
    first: Node,
    old: Node,
    layer: Layer,
    scheme: Scheme,
    weights: Mapping[str, WeightTable],
) -> Node:
    """Nodes at the graph's start that rebuild one weight from what is stored."""
    table = weights[layer.weight]
    values = insert_constant(module, first, f"{layer.weight}_values", table.values)
    operator = torch.ops.aten._to_copy.default
    with module.graph.inserting_before(first):
        if table.table is not None:
            rebuilt = _lookup_node(module, first, values, layer, scheme, table)
        elif table.scale is None:
            rebuilt = module.graph.call_function(operator, (values,), {"dtype": torch.float32})
        else:
            scale = insert_constant(module, first, f"{layer.weight}_scale", table.scale)
            axis, block, dtype = dequantize_arguments(layer.weight_format(scheme))
            rebuilt = module.graph.call_function(
                torch.ops.advisor.dequantize_affine.default,
                (values, scale, None, axis, block, dtype),
            )
            stamp(rebuilt, made_by=MADE_BY, name=layer.weight, role="weight")
            if tuple(table.values.shape) != layer.weight_shape:
                rebuilt = module.graph.call_function(
                    torch.ops.aten.view.default, (rebuilt, list(layer.weight_shape))
                )
    copy_meta(old, rebuilt)
    return stamp(rebuilt, made_by=MADE_BY, name=layer.weight, role="weight")


def _lookup_node(
    module: GraphModule, first: Node, values: Node, layer: Layer, scheme: Scheme, table: WeightTable
) -> Node:
    """The operator that looks a weight up in its table."""
    assert table.table is not None  # whoever calls has seen it
    entries = insert_constant(module, first, f"{layer.weight}_table", table.table)
    scale = None
    if table.scale is not None:
        scale = insert_constant(module, first, f"{layer.weight}_scale", table.scale)
    return module.graph.call_function(
        _ops.DEQUANTIZE_LUT, (values, entries, scale, scheme.weight.bits)
    )


def _replace_biases(
    module: GraphModule,
    calls: Mapping[str, Node],
    layers: Mapping[str, Layer],
    static: set[str],
    *,
    weights: Mapping[str, WeightTable],
    params: Mapping[str, ActivationParams],
    rules: StaticRules | None,
    corrected: Mapping[str, torch.Tensor],
) -> None:
    for name, node in calls.items():
        layer = layers.get(name)
        if layer is None or layer.bias is None:
            continue
        bias: torch.Tensor = corrected.get(name, attribute(module, layer.bias))
        as_int32 = rules is not None and name in static and layer.op in rules.int32_bias
        if as_int32:
            scale = weights[layer.weight].scale
            assert scale is not None  # a static scheme has integer weights
            step = scale * torch.tensor(params[layer.input].scale)
            bias = (bias / step).round() * step
        if as_int32 or name in corrected:
            old = node.args[2]
            constant = insert_constant(module, node, f"{layer.bias}_planned", bias)
            if isinstance(old, Node):
                copy_meta(old, constant)
            stamp(constant, made_by=MADE_BY, name=f"{name}.bias", role="bias")
            node.update_arg(2, constant)


def _insert_static(
    module: GraphModule,
    site: Site,
    params: ActivationParams,
    calls: Mapping[str, Node],
    static: set[str],
    for_all: bool,
) -> None:
    source = next(node for node in module.graph.nodes if node.name == site.node)
    readers = [calls[name] for name in site.readers if name in static]
    with module.graph.inserting_after(source):
        q = module.graph.call_function(
            torch.ops.advisor.quantize_static.default,
            (source, params.scale, params.zero_point, params.dtype),
        )
    with module.graph.inserting_after(q):
        restored = module.graph.call_function(
            torch.ops.advisor.dequantize_static.default, (q, params.scale, params.zero_point)
        )
    for node in (q, restored):
        copy_meta(source, node)
    stamp(q, made_by=MADE_BY, name=site.tensor, role="quantize")
    stamp(restored, made_by=MADE_BY, name=site.tensor, role="dequantize")

    def is_other(user: Node) -> bool:
        return user is not q

    if for_all:
        source.replace_all_uses_with(restored, delete_user_cb=is_other)
    else:
        for reader in readers:
            assert source in operands(reader)
            reader.replace_input_with(source, restored)


def _insert_dynamic(
    module: GraphModule, calls: Mapping[str, Node], dynamic: Mapping[str, DynamicRules]
) -> None:
    """One operator before each dynamic layer; layers that read one tensor alike share it.

    An LSTM also becomes the one that quantizes its hidden state.
    """
    made: dict[tuple[Node, DynamicRules], Node] = {}
    for name, node in calls.items():
        rules = dynamic.get(name)
        if rules is None or node.target is LSTM_DYNAMIC:  # its other weight came first
            continue
        source = input_argument(node)
        if (source, rules) not in made:
            with module.graph.inserting_before(node):  # the first of its readers
                rounded = module.graph.call_function(
                    QUANTIZE_DEQUANTIZE_DYNAMIC,
                    (source, rules.dtype, rules.symmetric, rules.granularity, rules.block),
                )
            copy_meta(source, rounded)
            made[source, rules] = stamp(rounded, made_by=MADE_BY, name=name, role="dynamic")
        node.replace_input_with(source, made[source, rules])
        if node.target is LSTM:
            node.target = LSTM_DYNAMIC
