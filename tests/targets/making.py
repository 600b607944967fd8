"""Quantized graphs made straight from the passes, so that tests judge a target alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from advisor.formats import scheme_named
from advisor.passes.calibrate import Observations, static_params
from advisor.passes.candidates import can_take, regions_of
from advisor.passes.capture import capture
from advisor.passes.fx import flatten_inputs
from advisor.passes.gates import spell_gates, spells_gates
from advisor.passes.graph import Graph, LayerAssignment, QuantizedGraph, name_of
from advisor.passes.group import class_tensors
from advisor.passes.observers import BINS, TensorStats
from advisor.passes.quantize import fit_biases, quantize, round_weights
from advisor.passes.rounding import algorithms_for
from advisor.passes.rounding.store import RoundedWeights
from advisor.targets.capability import load_capability

Quantizer = Callable[..., QuantizedGraph]

MOST_KEPT = 64
"""Graphs that are kept for the next test with an equal model."""

_CAPTURED: dict[Hashable, Graph] = {}


def captured(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, gates: bool = False
) -> Graph:
    """The model's graph, which tests with an equal model on equal inputs share: never change it.

    A target converts a graph once, so that plans for one graph are what a user has too. gates:
    whether SiLU is spelled out.
    """
    key = (gates, _spelled(model, (args, dict(kwargs))))
    if key not in _CAPTURED:
        if len(_CAPTURED) >= MOST_KEPT:
            del _CAPTURED[next(iter(_CAPTURED))]
        graph = capture(model, args, dict(kwargs))
        _CAPTURED[key] = replace(graph, module=spell_gates(graph.module)) if gates else graph
    return _CAPTURED[key]


def _spelled(model: nn.Module, inputs: Any) -> Hashable:
    """Equal for models of the same classes with the same attributes, tensors and ties."""
    modules = [
        (name, type(module), {k: v for k, v in vars(module).items() if not k.startswith("_")})
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    tensors = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    numbers: dict[int, int] = {}
    ties = tuple((name, numbers.setdefault(id(t), len(numbers))) for name, t in tensors)
    leaves, tree = pytree.tree_flatten(([plain for _, _, plain in modules], inputs))
    values = hashlib.sha256()
    for leaf in (*(tensor for _, tensor in tensors), *leaves):
        if isinstance(leaf, Tensor):
            values.update(f"{leaf.dtype} {tuple(leaf.shape)} {leaf.requires_grad}".encode())
            values.update(leaf.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            values.update(repr(leaf).encode())
    classes = tuple((name, kind) for name, kind, _ in modules)
    return classes, ties, str(tree), values.hexdigest()


class Observer(torch.fx.Interpreter):
    """Smallest and largest value of every tensor."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.module)
        self.found: dict[str, TensorStats] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            self.found[name_of(n)] = TensorStats(
                minimum=float(value.min()),
                maximum=float(value.max()),
                histogram=np.zeros(BINS, dtype=np.int64),
            )
        return value


def make(
    runtime: str,
    model: nn.Module,
    args: tuple[Any, ...],
    schemes: str | Mapping[str, str],
    *,
    batch: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> QuantizedGraph:
    """The model with every layer that can take its scheme under it, the others in float32.

    schemes: one for all layers, or by layer name. batch: of the deployment.
    """
    capability = load_capability(runtime)
    graph = captured(model, args, kwargs or {}, gates=spells_gates(capability.static))
    wanted = schemes if isinstance(schemes, Mapping) else {}
    names = {
        layer.name: wanted.get(layer.name, "fp32") if wanted else str(schemes)
        for layer in graph.layers
    }
    able = {
        layer.name: can_take(graph, layer, scheme_named(names[layer.name]), capability, {}).ok
        for layer in graph.layers
    }
    stuck = {layer.weight for layer in graph.layers if not able[layer.name]}  # tied ones too
    assignment = {
        layer.name: LayerAssignment(
            scheme=(scheme := "fp32" if layer.weight in stuck else names[layer.name]),
            algorithm=algorithms_for(scheme_named(scheme).weight)[0],
        )
        for layer in graph.layers
    }
    observer = Observer(graph)
    flat = flatten_inputs(graph.module, graph.args, graph.kwargs)
    with torch.no_grad():
        observer.run(*flat, enable_io_processing=False)
    regions, rules = regions_of(graph, capability), capability.static
    params = (
        {}
        if rules is None
        else static_params(
            Observations(tensors=observer.found),
            class_tensors(graph, capability),
            "minmax",
            rules,
            {site.tensor: site.dtype for site in regions.sites},
        )
    )
    store = RoundedWeights(graph, scales=capability.scale_rounding)
    tables = round_weights(graph, assignment, store)
    made = quantize(
        graph,
        assignment,
        weights=fit_biases(graph, assignment, tables, params, rules),
        params=params,
        regions=regions,
        rules=rules,
        dynamic=capability.dynamic,
    )
    return replace(made, batch=batch)


def maker(runtime: str) -> Quantizer:
    """(model, args, scheme or {layer: scheme}, batch=, kwargs=) -> QuantizedGraph."""
    torch.set_num_threads(1)
    return partial(make, runtime)
