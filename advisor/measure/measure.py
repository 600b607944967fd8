"""Time whole models that differ in their schemes, and find what every layer contributes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.fx import Node

from advisor.binding import fingerprint
from advisor.formats import scheme_named
from advisor.measure.cache import keep
from advisor.measure.costs import MeasuredCosts
from advisor.measure.fit import Prior, fit
from advisor.measure.terms import REST, Term, Terms, designs, find_terms, schemes_of
from advisor.passes.calibrate import Observations, static_params
from advisor.passes.fx import Tracer, flatten_inputs
from advisor.passes.graph import ActivationParams, Graph, LayerAssignment, QuantizedGraph, name_of
from advisor.passes.group import class_tensors
from advisor.passes.observers import BINS, RangeObserver, TensorStats
from advisor.passes.quantize import fit_biases, quantize, round_weights
from advisor.passes.rounding.store import RoundedWeights
from advisor.passes.shapes import deployment_inputs
from advisor.profiles.cost import is_storage_only
from advisor.search.problem import Choice, FloatArray
from advisor.setting import Deployment, Setting
from advisor.targets.base import Stopwatch, Timing

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done and the steps in all."""

LIMIT_S: Final = 45.0
"""Time to spend on measuring, where the model is not so slow that the fewest runs take longer."""

LEAST_ERROR: Final = 0.01
"""Relative error of a timed model that the fit assumes even when two halves agree better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """Makes quantized graphs to be timed: real schemes, rounded weights, plausible ranges."""

    setting: Setting
    params: Mapping[str, ActivationParams]
    rounded: RoundedWeights

    def build(self, choice: Choice) -> QuantizedGraph:
        """The graph of a choice; what it computes is of no use, how long it takes is."""
        setting = self.setting
        options = {
            name: setting.space.candidates[group.name][index]
            for group, index in zip(setting.groups, choice, strict=True)
            for name in group.layers
        }
        assignment = {
            name: LayerAssignment(scheme=option.scheme, algorithm=option.algorithm)
            for name, option in options.items()
        }
        rules = setting.capability.static
        tables = round_weights(setting.graph, assignment, self.rounded)
        return quantize(
            setting.graph,
            assignment,
            weights=fit_biases(setting.graph, assignment, tables, self.params, rules),
            params=self.params,
            regions=setting.regions,
            rules=rules,
            dynamic=setting.capability.dynamic,
        )


def workbench(setting: Setting) -> Workbench:
    """Ranges from one forward pass on the example inputs: zero points decide which kernels fuse."""
    graph = setting.graph
    seen = _Ranges(graph, {site.tensor for site in setting.regions.sites})
    with torch.no_grad():
        seen.run(
            *flatten_inputs(graph.module, graph.args, graph.kwargs), enable_io_processing=False
        )
    rules = setting.capability.static
    stats = {
        name: TensorStats(
            minimum=found.minimum, maximum=found.maximum, histogram=np.zeros(BINS, dtype=np.int64)
        )
        for name, found in seen.found.items()
    }
    classes = class_tensors(graph, setting.capability)
    observations = Observations(tensors=stats)
    params: dict[str, ActivationParams] = {}
    if rules is not None:
        dtypes = {site.tensor: site.dtype for site in setting.regions.sites}
        params = static_params(observations, classes, "minmax", rules, dtypes)
    return Workbench(
        setting=setting,
        params=params,
        rounded=RoundedWeights(graph, scales=setting.capability.scale_rounding),
    )


def kept_costs(
    setting: Setting,
    *,
    stopwatch: Stopwatch,
    deployment: Deployment,
    cache: Path | None,
    say: Progress,
) -> MeasuredCosts:
    """Costs measured before in the same circumstances, or now; cache: None measures now.

    Raises:
        OutputError: the cache cannot be written.
        MissingDependencyError, UnsupportedError: as ``measure_costs``.
    """
    key = {
        "machine": dict(stopwatch.machine()),
        "model": fingerprint(setting.graph),
        "batch": deployment.batch,
        "sequence": deployment.sequence,
        "threads": deployment.threads,
        "runtime": [setting.capability.name, repr(setting.capability.static)],
        "schemes": {
            group.name: [option.scheme for option in setting.space.candidates[group.name]]
            for group in setting.groups
        },
    }
    return keep(
        None if cache is None else cache / "costs",
        key,
        MeasuredCosts,
        lambda: measure_costs(
            setting,
            stopwatch,
            batch=deployment.batch,
            sequence=deployment.sequence,
            limit_s=LIMIT_S,
            say=partial(say, "measure"),
        ),
    )


def measure_costs(
    setting: Setting,
    stopwatch: Stopwatch,
    *,
    batch: int,
    sequence: int | None,
    limit_s: float,
    say: Callable[[int, int], None],
) -> MeasuredCosts:
    """Costs of every layer under every scheme it can take, at the deployment's shapes.

    Raises:
        MissingDependencyError: the runtime is not installed.
        UnsupportedError: a layer has a form the runtime does not take.
    """
    plans, bench = designs(setting), workbench(setting)
    timings = stopwatch.time_models(
        [partial(bench.build, plan) for plan in plans],
        deployment_inputs(setting.graph, batch, sequence),
        threads=setting.threads,
        limit_s=limit_s,
        with_parts=True,
        say=say,
    )
    return explain(setting, plans, timings, stopwatch.machine())


def explain(
    setting: Setting,
    plans: Sequence[Choice],
    timings: Sequence[Timing],
    machine: Mapping[str, str],
) -> MeasuredCosts:
    """The costs that best explain how long the plans took."""
    terms = find_terms(setting)
    rows = np.array([terms.row(plan) for plan in plans])
    sums = np.array([timing.seconds for timing in timings])
    noise = float(np.median([timing.noise for timing in timings]))
    prior = _prior(terms, plans, timings)
    error = max(noise, LEAST_ERROR)
    found = fit(rows, sums, error, prior)
    residuals = [
        abs(rows[i] @ fit(np.delete(rows, i, 0), np.delete(sums, i), error, prior) - sums[i])
        / sums[i]
        for i in range(len(plans))
    ]
    return _as_costs(terms, found, timings, noise, float(np.median(residuals)), machine)


def _as_costs(
    terms: Terms,
    found: FloatArray,
    timings: Sequence[Timing],
    noise: float,
    error: float,
    machine: Mapping[str, str],
) -> MeasuredCosts:
    setting = terms.setting
    layers: dict[str, dict[str, float]] = {layer.name: {} for layer in setting.graph.layers}
    for group in setting.groups:
        for layer in setting.layers_of(group):
            for option in setting.space.candidates[group.name]:
                seconds = max(float(found[terms.columns[terms.term(layer, option.scheme)]]), 0.0)
                layers[layer.name][option.scheme] = seconds
            for scheme, seconds in layers[layer.name].items():
                # Such a layer runs the float kernel and expands its weight besides.
                if is_storage_only(layer, scheme_named(scheme), setting.capability):
                    least = layers[layer.name].get("fp32", seconds)
                    layers[layer.name][scheme] = max(seconds, least)

    def of(kind: str, least: float) -> dict[str, float]:
        return {
            term[1]: max(float(found[column]), least)
            for term, column in terms.columns.items()
            if term[0] == kind
        }

    return MeasuredCosts(
        reference_s=timings[0].seconds,
        rest_s=max(float(found[terms.columns[REST]]), 0.0),
        layers=layers,
        quantize_s=of("quantize", 0.0),
        dequantize_s=of("dequantize", 0.0),
        integer_s=of("integer", -float("inf")),
        noise=noise,
        error=error,
        models=len(timings),
        machine=dict(machine),
    )


def _prior(terms: Terms, plans: Sequence[Choice], timings: Sequence[Timing]) -> Prior:
    """What the profiler says of each term, and how far that may be from the truth."""
    setting = terms.setting
    seen: dict[Term, list[float]] = defaultdict(list)
    for plan, timing in zip(plans, timings, strict=True):
        for layer, scheme in schemes_of(setting, plan):
            part = timing.parts.get(("layer", layer.name))
            if part is not None:
                seen[terms.term(layer, scheme)].append(part)
        for (kind, name), part in timing.parts.items():
            if (kind, name, "") in terms.columns:
                seen[kind, name, ""].append(part)
    # All layers in float: what no operator can be blamed for would otherwise be counted twice.
    seen[REST] = [timings[0].parts.get(("rest", ""), 0.0)]
    count = len(terms.columns)
    mean, deviation = np.zeros(count), np.zeros(count)
    guesses = _guesses(terms, seen)
    for term, column in terms.columns.items():
        if term in seen:
            mean[column] = float(np.median(seen[term]))
            deviation[column] = 0.1 * mean[column] + 1e-6
        else:
            mean[column] = guesses[term]
            deviation[column] = mean[column] + 2e-6
    return Prior(mean=mean, deviation=deviation, shared=_shared(terms, mean))


def _guesses(terms: Terms, seen: Mapping[Term, Sequence[float]]) -> dict[Term, float]:
    """Means of terms that the profiler did not see, from the profile's figures."""
    setting = terms.setting
    guessed: dict[Term, float] = {}
    ratios: list[float] = []
    for group in setting.groups:
        for layer in setting.layers_of(group):
            for option in setting.space.candidates[group.name]:
                term = terms.term(layer, option.scheme)
                guessed[term] = setting.cost(layer, option.scheme).latency_s
                if term in seen and guessed[term] > 0:
                    ratios.append(float(np.median(seen[term])) / guessed[term])
    ratio = float(np.median(ratios)) if ratios else 1.0
    guessed = {term: seconds * ratio for term, seconds in guessed.items()}
    for kind in ("quantize", "dequantize", "integer"):
        known = [
            (setting.count_of(term[1]), float(np.median(values)))
            for term, values in seen.items()
            if term[0] == kind
        ]
        slope, base = 0.0, 0.0
        if known:
            base = min(value for _, value in known)
            slope = max(sum(v - base for _, v in known) / max(sum(n for n, _ in known), 1), 0.0)
        for term in terms.columns:
            if term[0] == kind:
                guessed[term] = base + slope * setting.count_of(term[1])
    return guessed


def _shared(terms: Terms, mean: FloatArray) -> FloatArray:
    """Ways in which a profiler errs alike: a cost per node, and per unit, of a kind and scheme."""
    columns: dict[tuple[str, str], FloatArray] = {}
    for (kind, what, scheme), column in terms.columns.items():
        if kind == "rest":
            continue
        size = mean[column] if kind == "layer" else terms.setting.count_of(what)
        per_unit = 0.15 if kind == "layer" else 0.3e-9
        for name, value in ((f"{kind} count", 3e-6), (f"{kind} size", per_unit * size)):
            shared = columns.setdefault((name, scheme), np.zeros(len(mean)))
            shared[column] = value
    shared = np.zeros(len(mean))
    shared[terms.columns[REST]] = 0.1 * mean[terms.columns[REST]] + 1e-5
    columns["rest", ""] = shared
    return np.array(list(columns.values())).T


class _Ranges(Tracer):
    """Extremes of some tensors over one forward pass."""

    def __init__(self, graph: Graph, wanted: set[str]) -> None:
        super().__init__(graph.module)
        self.found = {name: RangeObserver() for name in wanted}

    def observe(self, node: Node, value: Any) -> Any:
        name = name_of(node)
        if isinstance(value, torch.Tensor) and name in self.found:
            self.found[name].update(value)
        return value
