"""What a report says, as plain data; the renderers beside this file only lay it out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from advisor.budget import Budget
from advisor.formats import SCHEMES
from advisor.plan import (
    Alternative,
    Drop,
    LayerDecision,
    Metrics,
    Option,
    Plan,
    Provenance,
    Quantity,
    TensorDecision,
    latencies,
)
from advisor.planfile import noted_measurements
from advisor.profiles.costparts import EnergyParts, MemoryParts
from advisor.profiles.timeparts import BoundBy, TimeParts

REPORT_SCHEMA = 3
"""Version of the report's JSON form."""

METRIC_TITLES = {
    "size_bytes": "Size",
    "file_bytes": "File",
    "memory_bytes": "Memory",
    "latency_s": "Latency",
    "energy_j": "Energy",
    "divergence": "Divergence",
    "metric": "Metric",
    "partitions": "Partitions",
}
"""Column title of every field of ``Metrics``, in the order in which reports show them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """One limit of the budget: a field of ``Metrics``, or "accuracy_drop" as a share of the metric.

    limit: in the field's unit. fits: None when the plan does not hold the number to check it.
    """

    field: str
    limit: float
    value: Quantity | None
    fits: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One row of a comparison: the plan itself, a uniform baseline or a point of the front.

    bits_per_weight: mean over all weights, scales included; None when a layer's bytes under its
    scheme are not known.
    """

    name: str
    metrics: Metrics
    bits_per_weight: float | None
    fits: bool | None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One layer. divergence_share: its part of the sum over layers, 0 to 1; error_share: the
    standard error of that part, from the probe's samples, None where it is not known.

    cheaper: the option with fewer bytes (or as many and less time) that loses least. better: the
    option with less divergence that costs fewest bytes. kept_float: no integers, ``reason`` says
    why. excluded: the options that cannot run, each with its reason.
    """

    name: str
    op: str
    group: str
    scheme: str
    algorithm: str
    weight_shape: tuple[int, ...]
    params: int
    size_bytes: int
    latency_s: float
    bound: BoundBy
    divergence: float
    divergence_share: float
    error_share: float | None
    bits_per_weight: float | None
    reason: str
    kept_float: bool
    cheaper: Option | None
    better: Option | None
    excluded: tuple[Option, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything a report shows. ``comparison[0]`` is the plan, with its
    measured numbers where there are any and its predicted ones elsewhere.

    fits: False when a checked bound is broken, None when no bound could be checked.
    """

    title: str
    target: str
    runtime: str
    objective: str
    budget: str
    outcome: str
    bounds: tuple[Bound, ...]
    fits: bool | None
    batch: int
    sequence: int | None
    context: int | None
    threads: int | None
    synthetic: bool
    bits_per_weight: float | None
    comparison: tuple[Contender, ...]
    pareto: tuple[Contender, ...]
    predicted: Metrics
    measured: Metrics
    drop: Drop | None
    breakdown: TimeParts
    memory_parts: MemoryParts
    energy_parts: EnergyParts | None
    arithmetic: Mapping[str, str]
    layers: tuple[LayerRow, ...]
    tensors: tuple[TensorDecision, ...]
    notes: tuple[str, ...]
    model_gap: float
    measured_regret: float
    trial_count: int
    pins: Mapping[str, str]
    bias_correction: bool
    observer: str
    equalise: bool
    model: str | None
    fingerprint: str
    tensors_sha256: str
    provenance: Provenance
    schema: int = REPORT_SCHEMA

    @property
    def kept_float(self) -> tuple[LayerRow, ...]:
        """The layers that stay in floating point, each with its reason."""
        return tuple(layer for layer in self.layers if layer.kept_float)


def report_data(plan: Plan) -> ReportData:
    """The content of a report on ``plan``; renders nothing and reads no file."""
    metrics = measured_first(plan)
    bounds = tuple(_read_bounds(plan, metrics))
    checked = [bound.fits for bound in bounds if bound.fits is not None]
    fits = all(checked) if checked else None
    bits = _bits_per_weight(plan, {layer.name: layer.size_bytes for layer in plan.layers})
    own = Contender(name="this plan", metrics=metrics, bits_per_weight=bits, fits=fits)
    total = sum(layer.divergence for layer in plan.layers)
    return ReportData(
        title=f"Plan for {plan.target} on {plan.runtime}",
        target=plan.target,
        runtime=plan.runtime,
        objective=plan.objective,
        budget=plan.budget,
        outcome=plan.outcome,
        bounds=bounds,
        fits=fits,
        batch=plan.batch,
        sequence=plan.sequence,
        context=plan.context,
        threads=plan.threads,
        synthetic=plan.provenance.calibration.synthetic,
        bits_per_weight=bits,
        comparison=(own, *(_contender(plan, _timed(plan, each)) for each in plan.baselines)),
        pareto=tuple(_contender(plan, each) for each in plan.pareto),
        predicted=plan.predicted,
        measured=with_timings(plan, plan.measured, "plan"),
        drop=plan.drop,
        breakdown=plan.breakdown,
        memory_parts=plan.memory_parts,
        energy_parts=plan.energy_parts,
        arithmetic=plan.arithmetic,
        layers=tuple(_layer_row(layer, total) for layer in plan.layers),
        tensors=plan.tensors,
        notes=plan.notes,
        model_gap=plan.model_gap,
        measured_regret=plan.measured_regret,
        trial_count=len(plan.trials),
        pins=plan.pins,
        bias_correction=plan.bias_correction,
        observer=plan.observer,
        equalise=plan.equalise,
        model=plan.model,
        fingerprint=plan.fingerprint,
        tensors_sha256=plan.tensors_sha256,
        provenance=plan.provenance,
    )


def measured_first(plan: Plan) -> Metrics:
    """The plan's measured numbers where there are any, its predicted ones elsewhere."""
    measured = with_timings(plan, plan.measured, "plan")
    values: dict[str, Quantity | None] = {}
    for field in dataclasses.fields(Metrics):
        found: Quantity | None = getattr(measured, field.name)
        values[field.name] = getattr(plan.predicted, field.name) if found is None else found
    return Metrics(**values)


def with_timings(plan: Plan, metrics: Metrics, subject: str) -> Metrics:
    """Metrics with what was timed of ``subject``: "plan", or a baseline by its name."""
    timed = {
        each.quantity: Quantity(
            value=each.value, origin="measured", how=f"{each.how}, on {each.machine}, {each.when}"
        )
        for each in noted_measurements(plan)
        if each.subject == subject
    }
    return dataclasses.replace(metrics, **timed)


def accuracy_drop(plan: Plan, metrics: Metrics) -> Quantity | None:
    """Share of the fp32 model's metric that the plan loses; None without a metric."""
    base = next((each.metrics.metric for each in plan.baselines if each.name == "fp32"), None)
    own = metrics.metric
    if base is None or own is None or base.value == 0:
        return None
    measured = base.origin == own.origin == "measured"
    return Quantity(
        value=(base.value - own.value) / abs(base.value),
        origin="measured" if measured else "modelled",
        how="this plan's metric against the fp32 model's",
    )


def _read_bounds(plan: Plan, metrics: Metrics) -> Iterator[Bound]:
    rivals = [_timed(plan, each) for each in plan.baselines]
    budget = Budget.parse(plan.budget).resolved(latencies(rivals))
    for field, limit in budget.bounds().items():
        yield _check_bound(field, limit, getattr(metrics, field))
    if budget.accuracy_drop is not None:
        drop = accuracy_drop(plan, metrics)
        yield _check_bound("accuracy_drop", budget.accuracy_drop, drop)


def _check_bound(field: str, limit: float, value: Quantity | None) -> Bound:
    fits = None if value is None else value.value <= limit
    return Bound(field=field, limit=limit, value=value, fits=fits)


def _timed(plan: Plan, baseline: Alternative) -> Alternative:
    return dataclasses.replace(
        baseline, metrics=with_timings(plan, baseline.metrics, baseline.name)
    )


def _contender(plan: Plan, alternative: Alternative) -> Contender:
    sizes: dict[str, int] = {}
    for layer in plan.layers:
        choice = alternative.schemes.get(layer.name)
        size = None if choice is None else _size_under(layer, choice)
        if size is not None:
            sizes[layer.name] = size
    return Contender(
        name=alternative.name,
        metrics=alternative.metrics,
        bits_per_weight=_bits_per_weight(plan, sizes),
        fits=alternative.fits,
        note=alternative.note,
    )


def _size_under(layer: LayerDecision, choice: str) -> int | None:
    scheme, _, algorithm = choice.partition("/")
    if scheme == layer.scheme:
        # Storage depends on the scheme alone, never on how the weights were rounded.
        return layer.size_bytes
    for option in layer.options:
        if option.scheme == scheme and not option.reason and algorithm in ("", option.algorithm):
            return option.size_bytes
    return None


def _bits_per_weight(plan: Plan, sizes: Mapping[str, int]) -> float | None:
    # A tied weight is one set of numbers, however many layers read it.
    params = {layer.weight: layer.params for layer in plan.layers}
    count = sum(params.values())
    if count == 0 or len(sizes) < len(plan.layers):
        return None
    return 8 * sum(sizes.values()) / count


def _layer_row(layer: LayerDecision, total: float) -> LayerRow:
    possible = [option for option in layer.options if not option.reason]
    cheaper = [
        option
        for option in possible
        if option.scheme != layer.scheme
        and (option.size_bytes, option.latency_s) < (layer.size_bytes, layer.latency_s)
    ]
    better = [option for option in possible if option.divergence < layer.divergence]
    return LayerRow(
        name=layer.name,
        op=layer.op,
        group=layer.group,
        scheme=layer.scheme,
        algorithm=layer.algorithm,
        weight_shape=layer.weight_shape,
        params=layer.params,
        size_bytes=layer.size_bytes,
        latency_s=layer.latency_s,
        bound=layer.bound,
        divergence=layer.divergence,
        divergence_share=layer.divergence / total if total > 0 else 0.0,
        error_share=None if layer.error is None or total <= 0 else layer.error / total,
        bits_per_weight=8 * layer.size_bytes / layer.params if layer.params else None,
        reason=layer.reason,
        kept_float=SCHEMES[layer.scheme].is_float,
        cheaper=min(cheaper, key=lambda each: (each.divergence, each.size_bytes), default=None),
        better=min(better, key=lambda each: (each.size_bytes, each.divergence), default=None),
        excluded=tuple(option for option in layer.options if option.reason),
    )
