"""FX passes that give a quantized graph the shapes ONNX Runtime has fast kernels for.

They move no number: integers and scales are only transposed, and the legalised graph computes
the same as the quantized graph up to the order of float additions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch.fx import GraphModule, Node

from advisor.formats import scheme_named
from advisor.passes.fx import clone, finish, flatten_inputs
from advisor.passes.graph import QuantizedGraph, name_of
from advisor.passes.shapes import infer_shapes
from advisor.targets.onnxruntime.embeddings import gather_embeddings
from advisor.targets.onnxruntime.fences import fence_layers
from advisor.targets.onnxruntime.linears import transpose_linears
from advisor.targets.onnxruntime.nodes import LAYER_TARGETS, Context, layers_of, mark


def legalise(graph: QuantizedGraph) -> GraphModule:
    """Given a quantized graph, a new module after all of ``LEGALISE``; shares its tensors.

    Raises:
        UnsupportedError: a layer has a form no kernel of ONNX Runtime takes.
    """
    module = clone(graph.module)
    flat = flatten_inputs(module, graph.float_graph.args, graph.float_graph.kwargs)
    context = Context(
        ranks={name: len(info.shape) for name, info in infer_shapes(module, flat).items()},
        static=frozenset(
            name for name, kept in graph.assignment.items() if scheme_named(kept.scheme).is_static
        ),
    )
    for legalisation in LEGALISE:
        module = finish(legalisation(module, context))
    return module


def mark_layers(module: GraphModule, context: Context) -> GraphModule:
    """Given any graph. Result: layer nodes have the role "op", their weights' nodes "weight"."""
    for node, _ in layers_of(module):
        name = name_of(node)
        mark(node, name, "op")
        weight = node.args[LAYER_TARGETS[node.target]]
        while isinstance(weight, Node) and weight.op == "call_function":
            mark(weight, name, "weight")
            weight = weight.args[0]
    return module


Pass = Callable[[GraphModule, Context], GraphModule]

LEGALISE: Final[tuple[Pass, ...]] = (
    mark_layers,
    gather_embeddings,
    transpose_linears,
    fence_layers,
)
"""The passes, in order."""
