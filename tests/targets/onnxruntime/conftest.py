"""Small quantized graphs made by hand, so that these tests judge the target alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from advisor.formats import PerBlock, Scheme, scheme_named
from advisor.passes import ops
from advisor.passes.fx import attribute, clone, finish, flatten_inputs, insert_constant, stamp
from advisor.passes.graph import (
    ActivationParams,
    Graph,
    Layer,
    LayerAssignment,
    QuantizedGraph,
    WeightTable,
    name_of,
)
from advisor.passes.layers import find_calls, input_argument, weight_argument
from tests.targets.making import captured

aten = torch.ops.aten
FUSED = (aten.relu.default, aten.hardtanh.default)
Quantizer = Callable[..., QuantizedGraph]


def rounded(weight: torch.Tensor, scheme: Scheme) -> WeightTable:
    """Round to nearest with the largest magnitude of every row (or block) on the grid's end."""
    if scheme.weight.dtype == "float16":
        return WeightTable(values=weight.to(torch.float16))
    if scheme.weight.is_float:
        return WeightTable(values=weight)
    low, high = ops.INTEGER_RANGE[scheme.weight.dtype]
    flat = weight.reshape(weight.shape[0], -1)
    granularity = scheme.weight.granularity
    size = granularity.size if isinstance(granularity, PerBlock) else flat.shape[1]
    blocks = flat.reshape(flat.shape[0], -1, size)
    scale = (blocks.abs().amax(-1) / high).clamp_min(1e-8)
    integers = (blocks / scale[..., None]).round().clamp(max(low, -high), high).to(torch.int8)
    is_blocked = isinstance(granularity, PerBlock)
    return WeightTable(
        values=integers.reshape(weight.shape), scale=scale if is_blocked else scale[:, 0]
    )


def observed(module: torch.fx.GraphModule, graph: Graph) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of every tensor on the example inputs, by stable name."""
    ranges: dict[str, tuple[float, float]] = {}

    class Observer(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
                ranges[name_of(n)] = (float(value.min()), float(value.max()))
            return value

    Observer(module).run(
        *flatten_inputs(module, graph.args, graph.kwargs), enable_io_processing=False
    )
    return ranges


def params(low: float, high: float) -> ActivationParams:
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(torch.tensor(max(high - low, 1e-6) / 255, dtype=torch.float32))
    return ActivationParams(scale=scale, zero_point=round(-low / scale), dtype="uint8")


def make(
    model: torch.nn.Module,
    inputs: tuple[Any, ...] | dict[str, Any],
    schemes: str | Mapping[str, str],
    *,
    fixed: bool = False,
) -> QuantizedGraph:
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    graph = captured(model.eval(), args, kwargs)
    if fixed:
        graph = replace(graph, dynamic={}, batch=2)
    chosen = (
        {layer.name: schemes for layer in graph.layers} if isinstance(schemes, str) else schemes
    )
    module = clone(graph.module)
    ranges = observed(module, graph)
    nodes = find_calls(module, graph.layers)
    tables: dict[str, WeightTable] = {}
    activations: dict[str, ActivationParams] = {}
    assignment: dict[str, LayerAssignment] = {}
    for layer in graph.layers:
        scheme = scheme_named(chosen.get(layer.name, "fp32"))
        assignment[layer.name] = LayerAssignment(scheme=scheme.name, algorithm="rtn")
        if layer.frozen is None:
            node = nodes[layer.name]
            stamp(node, made_by="test", name=layer.output, role="op")
            write_weight(module, node, layer, scheme, tables)
            if scheme.is_static and layer.op != "embedding":
                quantize_tensor(module, input_argument(node), ranges, activations)
                if layer.op.startswith("conv"):
                    users = list(node.users)
                    fused = len(users) == 1 and users[0].target in FUSED
                    quantize_tensor(module, users[0] if fused else node, ranges, activations)
                    round_bias(module, node, tables[layer.weight], activations)
    return QuantizedGraph(
        module=finish(module),
        float_graph=graph,
        assignment=assignment,
        weights=tables,
        activations=activations,
    )


def write_weight(
    module: torch.fx.GraphModule,
    node: torch.fx.Node,
    layer: Layer,
    scheme: Scheme,
    tables: dict[str, WeightTable],
) -> None:
    source = weight_argument(node, layer)
    weight = attribute(module, layer.weight).detach()
    table = tables.setdefault(layer.weight, rounded(weight, scheme))
    if scheme.weight.dtype == "float32":
        return
    granularity = scheme.weight.granularity
    blocked = isinstance(granularity, PerBlock)
    values = table.values
    if blocked and values.ndim > 2:
        values = values.reshape(values.shape[0], -1)
    q = shared_constant(module, node, f"{layer.weight}_q", values)
    if table.scale is None:
        with module.graph.inserting_before(node):
            real = module.graph.call_function(aten._to_copy.default, (q,), {"dtype": torch.float32})
    else:
        scale = shared_constant(module, node, f"{layer.weight}_s", table.scale)
        size = granularity.size if isinstance(granularity, PerBlock) else 0
        with module.graph.inserting_before(node):
            real = module.graph.call_function(
                ops.DEQUANTIZE_AFFINE, (q, scale, None, int(blocked), size, scheme.weight.dtype)
            )
            if values.shape != table.values.shape:
                stamp(real, made_by="test", name=layer.name, role="weight")
                real = module.graph.call_function(
                    aten.view.default, (real, list(table.values.shape))
                )
    stamp(real, made_by="test", name=layer.name, role="weight")
    node.replace_input_with(source, real)


def round_bias(
    module: torch.fx.GraphModule,
    node: torch.fx.Node,
    table: WeightTable,
    activations: Mapping[str, ActivationParams],
) -> None:
    """ONNX Runtime rounds a convolution's bias to multiples of input scale x weight scale."""
    bias = node.args[2]
    if not isinstance(bias, torch.fx.Node) or table.scale is None:
        return
    source = input_argument(node)
    step = torch.tensor(activations[name_of(source)].scale) * table.scale
    value = attribute(module, str(bias.target)).detach()
    rounded_bias = (value / step).round() * step
    node.update_arg(2, insert_constant(module, node, f"{bias.target}_r", rounded_bias))


def shared_constant(
    module: torch.fx.GraphModule, node: torch.fx.Node, target: str, value: torch.Tensor
) -> torch.fx.Node:
    if target in dict(module.named_buffers()):
        with module.graph.inserting_before(node):
            return module.graph.get_attr(target)
    return insert_constant(module, node, target, value)


def quantize_tensor(
    module: torch.fx.GraphModule,
    node: torch.fx.Node,
    ranges: Mapping[str, tuple[float, float]],
    activations: dict[str, ActivationParams],
) -> None:
    if node.target is ops.DEQUANTIZE_STATIC:
        return
    name = name_of(node)
    chosen = params(*ranges[name])
    activations[name] = chosen
    with module.graph.inserting_after(node):
        q = module.graph.call_function(
            ops.QUANTIZE_STATIC, (node, chosen.scale, chosen.zero_point, chosen.dtype)
        )
    with module.graph.inserting_after(q):
        real = module.graph.call_function(
            ops.DEQUANTIZE_STATIC, (q, chosen.scale, chosen.zero_point)
        )
    node.replace_all_uses_with(real, delete_user_cb=lambda user: user is not q)
    stamp(q, made_by="test", name=name, role="quantize")
    stamp(real, made_by="test", name=name, role="dequantize")


@pytest.fixture(scope="session")
def make_quantized() -> Quantizer:
    """(model, inputs, scheme or {layer: scheme}) -> QuantizedGraph."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return make
