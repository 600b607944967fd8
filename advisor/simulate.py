"""Measure assignments in torch: the simulation's divergence on held-out calibration data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node, map_arg
from torch.utils import _pytree as pytree

from advisor.errors import UsageError
from advisor.formats import scheme_named
from advisor.passes.apply import dynamic_rules, quantize_dequantize_samples
from advisor.passes.batching import Places, batch_symbols
from advisor.passes.calibrate import (
    CalibrationData,
    Observations,
    observe,
    observe_channels,
    run_references,
    static_params,
)
from advisor.passes.candidates import reads_channels
from advisor.passes.divergence import OutputKind, divergence
from advisor.passes.equalise import equalise, find_chains, find_factors
from advisor.passes.fx import Tracer
from advisor.passes.graph import (
    ActivationParams,
    Graph,
    LayerAssignment,
    QuantizedGraph,
)
from advisor.passes.group import TensorClass
from advisor.passes.ops import QUANTIZE_DEQUANTIZE_DYNAMIC
from advisor.passes.quantize import correct_biases, fit_biases, quantize, round_weights
from advisor.passes.recurrent import LSTM_DYNAMIC, run_in_batches
from advisor.passes.rounding import NEEDS_DATA
from advisor.passes.rounding.store import RoundedWeights
from advisor.passes.smooth import Site, find_sites, find_smoothing
from advisor.passes.spool import Spool
from advisor.search.measurements import Measured, Report
from advisor.search.problem import Choice, Knobs
from advisor.setting import Setting

Loss = Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What quantized graphs are built from: a float graph, what was seen in it, its integers.

    factors: those the graph was equalised by (``passes.equalise``); none for the model itself.
    """

    graph: Graph
    observations: Observations
    rounded: RoundedWeights
    factors: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])


def rescalable(setting: Setting) -> tuple[Site, ...]:
    """Tensors to smooth: integers may be made of them only for the linear layers that read them.

    A tensor that is computed as integers has no place for a multiplication, and one between two
    layers of a chain is equalised already.
    """
    able = {
        layer
        for group in setting.groups
        for option in setting.space.candidates[group.name]
        if scheme_named(option.scheme).activation is not None
        for layer in group.layers
    }
    chained = {chain.second.input for chain in find_chains(setting.graph)}
    return tuple(
        site
        for site in find_sites(setting.graph)
        if site.tensor not in chained
        and site.tensor not in setting.regions.produced
        and any(reader.name in able for reader in site.readers)
    )


def can_equalise(setting: Setting) -> bool:
    """Whether some channels can be rescaled, and some activations be integers."""
    schemes = {
        scheme_named(option.scheme)
        for options in setting.space.candidates.values()
        for option in options
    }
    is_static = any(scheme.is_static for scheme in schemes)
    return bool(rescalable(setting)) or (is_static and bool(find_chains(setting.graph)))


def channel_importance(
    setting: Setting, graph: Graph, data: CalibrationData
) -> dict[str, torch.Tensor]:
    """By weight name the mean square of every channel it meets, where some algorithm asks for it.

    Of a weight that several layers read, the sum over them, but for embeddings: they read ids.
    """
    needing = {
        name
        for group in setting.groups
        for option in setting.space.candidates[group.name]
        if option.algorithm in NEEDS_DATA
        for name in group.layers
    }
    layers = {
        layer.name: layer
        for layer in graph.layers
        if layer.name in needing and reads_channels(layer)
    }
    if not layers:
        return {}
    found: dict[str, torch.Tensor] = {}
    for name, stats in observe_channels(graph, data.scoring, list(layers.values())).items():
        weight, square = layers[name].weight, stats.square.float()
        found[weight] = found[weight] + square if weight in found else square
    return found


@dataclass(slots=True, kw_only=True)
class Simulator:
    """Builds and measures quantized graphs of one setting on one set of calibration data.

    losses: predicted divergence of rounding what linear layers read, by tensor; None: unknown.
    equalised: the basis of trials that equalise, once the first of them asked for it.
    scored: the float model's outputs on the scoring half, once something was measured there.
    """

    setting: Setting
    data: CalibrationData
    observations: Observations
    classes: Sequence[TensorClass]
    kinds: Sequence[OutputKind]
    powers: Sequence[float]
    rounded: RoundedWeights
    loss: Loss | None = None
    losses: Mapping[str, float] | None = None
    equalised: Basis | None = None
    scored: Spool | None = None

    def basis(self, knobs: Knobs) -> Basis:
        """The model itself, or the model equalised."""
        if not knobs.get("equalise", False):
            return Basis(
                graph=self.setting.graph, observations=self.observations, rounded=self.rounded
            )
        if self.equalised is None:
            self.equalised = self._equalise()
        return self.equalised

    def _equalise(self) -> Basis:
        graph, scoring = self.setting.graph, self.data.scoring
        chains = find_chains(graph)
        sites = rescalable(self.setting)
        readers = [*(chain.second for chain in chains), *(site.readers[0] for site in sites)]
        seen = observe_channels(graph, scoring, readers)
        factors = find_factors(graph, chains, {name: each.largest for name, each in seen.items()})
        factors |= find_smoothing(equalise(graph, factors), sites, seen, self.losses)
        equal = equalise(graph, factors)
        known = self.observations
        layers = [layer for layer in equal.layers if layer.name in known.input_means]
        return Basis(
            graph=equal,
            observations=observe(equal, scoring, frozenset(known.tensors), layers),
            rounded=RoundedWeights(
                equal,
                base=self.rounded,
                importance=channel_importance(self.setting, equal, self.data),
            ),
            factors=factors,
        )

    def params(self, knobs: Knobs) -> dict[str, ActivationParams]:
        """Static parameters of every site under the knobs' observer."""
        rules = self.setting.capability.static
        if rules is None:
            return {}
        observer = str(knobs.get("observer", "minmax"))
        dtypes = {site.tensor: site.dtype for site in self.setting.regions.sites}
        observations = self.basis(knobs).observations
        return static_params(observations, self.classes, observer, rules, dtypes)

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
        basis = self.basis(knobs)
        graph = basis.graph
        assignment = self.assignment(choice)
        rules = self.setting.capability.static
        params = self.params(knobs)
        tables = round_weights(graph, assignment, basis.rounded)
        weights = fit_biases(graph, assignment, tables, params, rules)
        biases = (
            correct_biases(graph, assignment, weights, basis.observations.input_means)
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
            dynamic=self.setting.capability.dynamic,
            biases=biases,
        )

    def measure(self, choice: Choice, knobs: Knobs) -> float:
        """Mean divergence over the held-out samples (or the user's loss)."""
        return self.measure_graph(self.quantized(choice, knobs))

    def measure_graph(self, quantized: QuantizedGraph) -> float:
        """The same for a graph that is already built."""
        data = self.data
        return self._total(quantized, data.held_out, data.references) / data.held_out.samples

    def measure_all(self, choice: Choice, knobs: Knobs, report: Report) -> Measured:
        """Mean divergence over both halves, and over the held-out one; a user's loss over that
        alone.

        report: called after every batch with the least that the mean over both can still be; not
        for a loss, of which nothing is known.
        """
        quantized = self.quantized(choice, knobs)
        held_out, scoring = self.data.held_out, self.data.scoring
        if self.loss is not None:
            lost = self.measure_graph(quantized)
            return Measured(divergence=lost, held_out=lost)
        samples = held_out.samples + scoring.samples
        first = self._total(
            quantized, held_out, self.data.references, lambda so_far: report(so_far / samples)
        )
        other = self._total(
            quantized, scoring, self._scored(), lambda so_far: report((first + so_far) / samples)
        )
        return Measured(divergence=(first + other) / samples, held_out=first / held_out.samples)

    def measure_scoring(self, choice: Choice, knobs: Knobs) -> float:
        """Mean divergence over the scoring half, whatever loss the user gave: to correct
        predictions, which are of the divergence, without touching the held-out half."""
        scoring, references = self.data.scoring, self._scored()
        return self._total(self.quantized(choice, knobs), scoring, references) / scoring.samples

    def _scored(self) -> Spool:
        if self.scored is None:
            scoring = self.data.scoring
            folder = scoring.folder.with_name("scoring_references")
            self.scored = run_references(self.setting.graph, scoring, folder)
        return self.scored

    def _total(
        self,
        quantized: QuantizedGraph,
        data: Spool,
        references: Spool,
        report: Report | None = None,
    ) -> float:
        """Divergence summed over samples; a user's loss only over those that are held out."""
        distance = self._divergence if data is self.data.scoring else self._distance
        tracer = _Replay(quantized, self.setting.batch)
        total = 0.0
        with torch.no_grad():
            for index in range(len(data)):
                batch = data.batch(index)
                outputs = tracer.run_batch(data.read(index), batch)
                total += distance(quantized.module, outputs, references.read(index)) * batch
                if report is not None:
                    report(total)
        return total

    def _divergence(self, _: Any, outputs: Sequence[Any], references: Sequence[Any]) -> float:
        return float(divergence(outputs, references, self.kinds, self.powers).mean())

    def _distance(self, module: Any, outputs: Sequence[Any], references: Sequence[Any]) -> float:
        if self.loss is None:
            return self._divergence(module, outputs, references)
        spec = module.graph._codegen.pytree_info.out_spec
        try:
            value = self.loss(
                pytree.tree_unflatten(list(outputs), spec), pytree.tree_unflatten(references, spec)
            )
        except Exception as error:  # whatever a user's function may raise; it is the cause
            raise UsageError(
                f"loss raised {type(error).__name__}: {error}; it is called with a batch's outputs "
                "and the float model's, as loss(outputs, reference)"
            ) from error
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"loss returned {type(value).__name__}, which is no single number; "
                "return one float, the mean over the batch"
            ) from error


class _Replay(Tracer):
    """Runs a quantized graph on many batches and rebuilds each weight from integers only once.

    batch: of the deployment. Scales that samples share at run time are taken from that many at
    once, as the deployment will, so that a large calibration batch needs to be run only once.
    """

    def __init__(self, quantized: QuantizedGraph, batch: int) -> None:
        super().__init__(quantized.module)
        self._constant: dict[Node, Any] = {}
        self._batch = batch
        self._symbols = batch_symbols(quantized.float_graph)
        self._places: Places | None = None
        # A graph of one fixed batch is deployed, and was calibrated, in batches of that size.
        couples = any(rules.couples_samples for rules in quantized.dynamic.values())
        self._splits = couples and quantized.float_graph.batch is None

    def run_batch(self, flat: Sequence[Any], samples: int) -> Sequence[Any]:
        """The outputs for one calibration batch of ``samples``."""
        self._places = Places(self._symbols, samples) if self._splits else None
        outputs: Sequence[Any] = self.run(*flat, enable_io_processing=False)
        return outputs

    def observe(self, node: Node, value: Any) -> Any:
        """Note where the samples are."""
        if self._places is not None and isinstance(value, torch.Tensor):
            self._places.see(node, value)
        return value

    def run_node(self, n: Node) -> Any:
        """Compute one node, or return what it computed for an earlier batch."""
        if n in self._constant:
            return self._constant[n]
        if self._places is not None and n.target is QUANTIZE_DEQUANTIZE_DYNAMIC:
            return self.observe(n, self._quantize_by_batch(n, self._places))
        if self._places is not None and n.target is LSTM_DYNAMIC:
            arguments = map_arg(n.args, self.env.__getitem__)
            return self.observe(n, run_in_batches(arguments, self._places.samples, self._batch))
        value = super().run_node(n)
        sources = n.all_input_nodes
        if (
            n.op == "call_function"
            and sources
            and all(source.op == "get_attr" or source in self._constant for source in sources)
        ):
            self._constant[n] = value
        return value

    def _quantize_by_batch(self, node: Node, places: Places) -> torch.Tensor:
        source: Any = node.args[0]
        return quantize_dequantize_samples(
            self.env[source],
            dynamic_rules(node),
            place=places.of(source),
            samples=places.samples,
            batch=self._batch,
        )
