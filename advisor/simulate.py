"""Measure assignments in torch: the simulation's divergence on held-out calibration data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from advisor.errors import UsageError
from advisor.passes.calibrate import CalibrationData, Observations, static_params
from advisor.passes.divergence import OutputKind, divergence
from advisor.passes.fx import Tracer
from advisor.passes.graph import (
    ActivationParams,
    LayerAssignment,
    QuantizedGraph,
)
from advisor.passes.group import TensorClass
from advisor.passes.quantize import correct_biases, fit_biases, quantize, round_weights
from advisor.passes.rounding.store import RoundedWeights
from advisor.search.problem import Choice
from advisor.search.study import Knobs
from advisor.setting import Setting

Loss = Callable[[Any, Any], Any]


@dataclass(slots=True, kw_only=True)
class Simulator:
    """Builds and measures quantized graphs of one setting on one set of calibration data."""

    setting: Setting
    data: CalibrationData
    observations: Observations
    classes: Sequence[TensorClass]
    kinds: Sequence[OutputKind]
    powers: Sequence[float]
    rounded: RoundedWeights
    loss: Loss | None = None

    def params(self, observer: str) -> dict[str, ActivationParams]:
        """Static parameters of every site under an observer."""
        rules = self.setting.capability.static
        if rules is None:
            return {}
        dtypes = {site.tensor: site.dtype for site in self.setting.regions.sites}
        return static_params(self.observations, self.classes, observer, rules, dtypes)

    def assignment(self, choice: Choice) -> dict[str, LayerAssignment]:
        """Scheme and algorithm by layer name."""
        found: dict[str, LayerAssignment] = {}
        for group, index in zip(self.setting.groups, choice, strict=True):
            option = self.setting.space.candidates[group.name][index]
            for layer in group.layers:
                found[layer] = LayerAssignment(scheme=option.scheme, algorithm=option.algorithm)
        return found

    def quantized(self, choice: Choice, knobs: Knobs) -> QuantizedGraph:
        """The graph that a choice stands for."""
        graph = self.setting.graph
        assignment = self.assignment(choice)
        rules = self.setting.capability.static
        params = self.params(str(knobs.get("observer", "minmax")))
        tables = round_weights(graph, assignment, self.rounded)
        weights = fit_biases(graph, assignment, tables, params, rules)
        means = self.observations.input_means
        biases = (
            correct_biases(graph, assignment, weights, means)
            if knobs.get("bias_correction", False)
            else {}
        )
        return quantize(
            graph,
            assignment,
            weights=weights,
            params=params,
            regions=self.setting.regions,
            rules=rules,
            biases=biases,
        )

    def measure(self, choice: Choice, knobs: Knobs) -> float:
        """Mean divergence over the held-out samples (or the user's loss)."""
        return self.measure_graph(self.quantized(choice, knobs))

    def measure_graph(self, quantized: QuantizedGraph) -> float:
        """The same for a graph that is already built."""
        tracer = _Replay(quantized.module)
        total, samples = 0.0, 0
        with torch.no_grad():
            for index in range(len(self.data.held_out)):
                outputs = tracer.run(*self.data.held_out.read(index), enable_io_processing=False)
                references = self.data.references.read(index)
                batch = self.data.held_out.batch(index)
                total += self._distance(quantized.module, outputs, references) * batch
                samples += batch
        return total / samples

    def _distance(self, module: Any, outputs: Sequence[Any], references: Sequence[Any]) -> float:
        if self.loss is None:
            return float(divergence(outputs, references, self.kinds, self.powers).mean())
        spec = module.graph._codegen.pytree_info.out_spec
        value = self.loss(
            pytree.tree_unflatten(list(outputs), spec), pytree.tree_unflatten(references, spec)
        )
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"loss returned {type(value).__name__}, which is no single number; "
                "return one float, the mean over the batch"
            ) from error


class _Replay(Tracer):
    """Runs a quantized graph on many batches and rebuilds each weight from integers only once."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self._constant: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        """Compute one node, or return what it computed for an earlier batch."""
        if n in self._constant:
            return self._constant[n]
        value = super().run_node(n)
        sources = n.all_input_nodes
        if (
            n.op == "call_function"
            and sources
            and all(source.op == "get_attr" or source in self._constant for source in sources)
        ):
            self._constant[n] = value
        return value
