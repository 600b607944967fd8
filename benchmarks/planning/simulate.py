"""A simulator for plans of weights alone: the float graph with its weights exchanged.

What it measures is what ``Simulator`` measures, because the integers of a weight-only plan become
floats again before they are used; it only builds no graph per plan, and measures none twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

import torch
from torch import Tensor

from advisor.formats import scheme_named
from advisor.passes.apply import dequantize
from advisor.passes.divergence import divergence
from advisor.passes.fx import Tracer, attribute, clone, finish, flatten_inputs, set_constant
from advisor.passes.graph import Graph
from advisor.search.measurements import Measured, Report
from advisor.search.problem import Choice, Knobs
from advisor.simulate import Simulator
from benchmarks.models import Inputs

TOGETHER: Final = 256
"""Samples that are judged at once."""

FLOAT = -1
"""In a choice: the group stays as it is, which is none of its candidates."""


@dataclass(slots=True, kw_only=True)
class WeightSimulator(Simulator):
    """known: divergences by choice and set of samples. runs: measurements that were made."""

    known: dict[tuple[Choice, str], Tensor] = field(
        default_factory=dict[tuple[Choice, str], Tensor]
    )
    sets: dict[str, list[tuple[Sequence[Any], Sequence[Any]]]] = field(
        default_factory=dict[str, list[tuple[Sequence[Any], Sequence[Any]]]]
    )
    module: Any = None
    runs: int = 0

    def measure(self, choice: Choice, knobs: Knobs) -> float:
        """Mean divergence over the held-out half."""
        return float(self.each(choice, "held_out").mean())

    def measure_all(self, choice: Choice, knobs: Knobs, report: Report) -> Measured:
        """Mean divergence over both halves, and over the held-out one."""
        return Measured(
            divergence=self.measure_planning(choice), held_out=self.measure(choice, knobs)
        )

    def measure_scoring(self, choice: Choice, knobs: Knobs) -> float:
        """Mean divergence over the scoring half."""
        return float(self.each(choice, "scoring").mean())

    def measure_planning(self, choice: Choice) -> float:
        """Mean divergence over both halves."""
        return float(
            torch.cat([self.each(choice, "scoring"), self.each(choice, "held_out")]).mean()
        )

    def each(self, choice: Choice, samples: str) -> Tensor:
        """Divergence of every sample of a set; ``FLOAT`` leaves a group alone."""
        key = (choice, samples)
        if key not in self.known:
            self.runs += 1
            self._exchange(choice)
            parts = [
                divergence(self._run(flat), references, self.kinds, self.powers)
                for flat, references in self._set(samples)
            ]
            self.known[key] = torch.cat(parts)
        return self.known[key]

    def judge_by(self, inputs: Inputs) -> None:
        """Make the set "unused" of these samples."""
        self._exchange(tuple(FLOAT for _ in self.setting.groups))
        count = len(next(iter(inputs.values())))
        found: list[tuple[Sequence[Any], Sequence[Any]]] = []
        for start in range(0, count, TOGETHER):
            batch = {name: value[start : start + TOGETHER] for name, value in inputs.items()}
            flat = flatten_inputs(self.setting.graph.module, (), batch)
            found.append((flat, self._run(flat)))
        self.sets["unused"] = found

    def _set(self, samples: str) -> list[tuple[Sequence[Any], Sequence[Any]]]:
        if samples not in self.sets:
            data = self.data.scoring if samples == "scoring" else self.data.held_out
            exact = clone(self.setting.graph.module)
            flats = [data.read(index) for index in range(len(data))]
            with torch.no_grad():
                self.sets[samples] = [
                    (flat, Tracer(exact).run(*flat, enable_io_processing=False)) for flat in flats
                ]
        return self.sets[samples]

    def _run(self, flat: Sequence[Any]) -> Sequence[Any]:
        with torch.no_grad():
            outputs: Sequence[Any] = Tracer(self.module).run(*flat, enable_io_processing=False)
        return outputs

    def _exchange(self, choice: Choice) -> None:
        graph = self.setting.graph
        if self.module is None:
            own = {
                layer.weight: attribute(graph.module, layer.weight) for layer in _weighted(graph)
            }
            self.module = reweigh(graph, own).module
        for group, index in zip(self.setting.groups, choice, strict=True):
            options = self.setting.space.candidates[group.name]
            for layer in self.setting.layers_of(group):
                if not layer.weight:
                    continue
                weight = attribute(graph.module, layer.weight)
                if index != FLOAT:
                    fmt = layer.weight_format(scheme_named(options[index].scheme))
                    table = self.rounded.get(layer.weight, fmt, options[index].algorithm)
                    weight = dequantize(table, fmt, layer.weight_shape)
                attribute(self.module, layer.weight).data = weight


def weight_simulator(simulator: Simulator) -> WeightSimulator:
    """The same data and rounded weights."""
    return WeightSimulator(
        **{each.name: getattr(simulator, each.name) for each in fields(simulator)}
    )


def reweigh(graph: Graph, weights: Mapping[str, Tensor]) -> Graph:
    """The graph with weights of its own, by fully qualified name."""
    module = clone(graph.module)
    for target, value in weights.items():
        set_constant(module, target, torch.nn.Parameter(value.detach(), requires_grad=False))
    return replace(graph, module=finish(module))


def _weighted(graph: Graph) -> list[Any]:
    return [layer for layer in graph.layers if layer.weight]
