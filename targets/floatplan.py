"""The model before quantization, as a plan that any target can write."""

from __future__ import annotations

from advisor.passes.graph import Graph, LayerAssignment, QuantizedGraph


def float_plan(source: Graph) -> QuantizedGraph:
    """Every layer in float32, to go the same way as a plan: only the precision differs."""
    return QuantizedGraph(
        module=source.module,
        float_graph=source,
        assignment={
            layer.name: LayerAssignment(scheme="fp32", algorithm="rtn") for layer in source.layers
        },
        weights={},
        activations={},
    )
