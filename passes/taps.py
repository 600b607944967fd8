"""One forward pass that keeps what scoring needs: inputs and outputs of layers, and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node, map_arg

from advisor.passes.apply import run_layer
from advisor.passes.batching import Place, Places, batch_symbols
from advisor.passes.fx import Tracer, attribute
from advisor.passes.graph import Graph, Layer, name_of
from advisor.passes.layers import (
    PRODUCT_OPS,
    can_be_layer,
    input_argument,
    operands,
    weight_argument,
    weight_arguments,
)
from advisor.passes.recurrent import WEIGHTS_AT, run_in_batches


class Taps(Tracer):
    """One forward pass that keeps the inputs and outputs of ``layers`` and the ``tensors``.

    samples: in the batch that is run.
    """

    def __init__(
        self, graph: Graph, layers: frozenset[str], tensors: frozenset[str], samples: int
    ) -> None:
        super().__init__(graph.module)
        self.samples = samples
        self.where = Places(batch_symbols(graph), samples)
        self.places: dict[str, Place | None] = {}
        self.layers = {layer.output for layer in graph.layers if layer.name in layers}
        self.sites = tensors
        self.inputs: dict[str, torch.Tensor] = {}
        self.others: dict[str, torch.Tensor] = {}
        self.values: dict[str, torch.Tensor] = {}
        self.nodes: dict[str, Node] = {}
        self.arguments: dict[str, tuple[Any, ...]] = {}

    def observe(self, node: Node, value: Any) -> Any:
        """Keep what is asked for, and make gradients flow from the first of it."""
        if not isinstance(value, torch.Tensor):
            return value
        name = name_of(node)
        self.where.see(node, value)
        self.places[name] = self.where.of(node)
        is_layer = can_be_layer(node) and name in self.layers
        if is_layer:
            self.nodes[name] = node
            read = [self.env[operand].detach() for operand in operands(node)]
            self.inputs[name] = read[0]
            if node.target in PRODUCT_OPS:
                self.others[name] = read[1]
            if node.target in WEIGHTS_AT:
                self.arguments[name] = map_arg(node.args, lambda n: self.env[n].detach())
        if (is_layer or name in self.sites) and value.is_floating_point():
            if not value.requires_grad:
                value = value.detach().requires_grad_()
            self.values[name] = value
        return value

    def reweigh(self, layer: Layer, change: torch.Tensor) -> torch.Tensor:
        """What a change of the layer's weight does to its output."""
        node = self.nodes[layer.output]
        if node.target not in WEIGHTS_AT:
            return run_layer(node, self.inputs[layer.output], change)
        return self._rerun(node, weight_argument(node, layer), change)

    def reread(self, graph: Graph, layer: Layer, change: torch.Tensor, batch: int) -> torch.Tensor:
        """What a change of the input of a dynamic layer does to its output.

        To the recurrent weight of an LSTM counts what happens to the hidden state instead.
        """
        node = self.nodes[layer.output]
        if node.target not in WEIGHTS_AT:
            return run_layer(node, change, attribute(graph.module, layer.weight))
        if layer.weight == weight_arguments(node)[0].target:
            return self._rerun(node, input_argument(node), change)
        arguments = self.arguments[layer.output]
        return run_in_batches(arguments, self.samples, batch) - self.values[layer.output]

    def _rerun(self, node: Node, argument: Node, change: torch.Tensor) -> torch.Tensor:
        """What a change of one argument of a recurrent operator does to its output."""
        name = name_of(node)
        arguments = [
            value + change if source is argument else value
            for source, value in zip(node.args, self.arguments[name], strict=True)
        ]
        operator: Any = node.target
        changed: torch.Tensor = operator(*arguments)
        return changed - self.values[name]

    def gradients(
        self, outputs: Sequence[torch.Tensor], probes: Sequence[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Jᵀv at every tapped value."""
        live = [(o, v) for o, v in zip(outputs, probes, strict=True) if o.requires_grad]
        if not live:
            return {}
        values = list(self.values.values())
        found: list[torch.Tensor | None] = [
            *torch.autograd.grad(
                [o for o, _ in live],
                values,
                [v for _, v in live],
                retain_graph=True,
                allow_unused=True,
            )
        ]
        return {
            name: gradient
            for name, gradient in zip(self.values, found, strict=True)
            if gradient is not None
        }
