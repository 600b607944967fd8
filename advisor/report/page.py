"""The report as a page of sections and tables, in words; renderers only set it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from advisor.plan import Metrics, Option
from advisor.report.data import METRIC_TITLES, Contender, LayerRow, ReportData
from advisor.report.section import Cell, Section, Table
from advisor.report.timing import (
    break_down_energy,
    break_down_memory,
    break_down_time,
    describe_arithmetic,
)
from advisor.report.units import (
    LEGEND,
    MODELLED_MARK,
    UNKNOWN,
    format_bytes,
    format_count,
    format_metric,
    format_number,
    format_percent,
    format_quantity,
    format_seconds,
)

SHOWN_ERROR = 1e-3
"""Of the predicted loss: smaller standard errors are not worth a place in the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The whole report. alarms: what must not be overlooked. facts: label and value."""

    title: str
    outcome: str
    alarms: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]


def lay_out(data: ReportData) -> Page:
    """The page for ``data``; sections without content are left out."""
    sections = (
        _comparison("Comparison", "This plan and uniform precision", data.comparison, (LEGEND,)),
        _budget(data),
        _predicted_and_measured(data),
        break_down_time(data),
        break_down_memory(data),
        break_down_energy(data),
        _layers(data),
        _kept_float(data),
        _excluded(data),
        describe_arithmetic(data),
        _tensors(data),
        _optimality(data),
        _comparison("Pareto front", "Other plans that nothing beats in every number", data.pareto),
        Section(title="Notes", paragraphs=data.notes),
        _provenance(data),
    )
    return Page(
        title=data.title,
        outcome=data.outcome,
        alarms=tuple(_alarms(data)),
        facts=_facts(data),
        sections=tuple(each for each in sections if each.paragraphs or each.table),
    )


def describe_fit(fits: bool | None) -> str:
    """Whether a plan fits its budget, in a word or two."""
    return {True: "yes", False: "NO", None: "not checked"}[fits]


def _alarms(data: ReportData) -> list[str]:
    alarms: list[str] = []
    if data.synthetic:
        alarms.append(
            "SYNTHETIC CALIBRATION. No calibration data was given, so every divergence and every "
            "static range below comes from made-up inputs. Do not ship on these numbers: plan "
            "again with calibration data from the task."
        )
    alarms += [
        f"OVER BUDGET. {METRIC_TITLES.get(bound.field, 'Accuracy drop')} is "
        f"{format_quantity(bound.field, bound.value)}, the limit is "
        f"{format_metric(bound.field, bound.limit)}."
        for bound in data.bounds
        if bound.fits is False
    ]
    return alarms


def _facts(data: ReportData) -> tuple[tuple[str, str], ...]:
    deployment = [f"batch {data.batch}"]
    if data.sequence is not None:
        deployment.append(f"sequence {data.sequence}")
    if data.context is not None:
        deployment.append(f"{data.context} tokens of keys and values")
    if data.threads is not None:
        deployment.append(f"threads {data.threads}")
    own = data.comparison[0].metrics
    numbers = [
        (title, format_quantity(field, getattr(own, field)))
        for field, title in METRIC_TITLES.items()
        if getattr(own, field) is not None
    ]
    return (
        ("Target", data.target),
        ("Runtime", data.runtime),
        ("Objective", data.objective),
        ("Budget", data.budget),
        ("Fits the budget", describe_fit(data.fits)),
        ("Deployment", ", ".join(deployment)),
        *numbers,
        *_drop(data),
        ("Effective bits per weight", _bits(data.bits_per_weight).text),
    )


def _drop(data: ReportData) -> tuple[tuple[str, str], ...]:
    """What is lost of the user's metric, with its interval where there is one."""
    drop = data.drop
    if drop is None:
        return ()
    said = format_percent(drop.value)
    if drop.low is not None and drop.high is not None:
        said += f", 95 % interval {format_percent(drop.low)} to {format_percent(drop.high)}"
        said += f" over {drop.examples} examples"
    return (("Drop of the metric", said),)


def _comparison(
    title: str,
    caption: str,
    rows: tuple[Contender, ...],
    paragraphs: tuple[str, ...] = (),
) -> Section:
    if not rows:
        return Section(title=title)
    shown = [
        field
        for field in METRIC_TITLES
        if any(getattr(row.metrics, field) is not None for row in rows)
    ]
    columns = ("Plan", "Bits/weight", *(METRIC_TITLES[field] for field in shown), "Fits", "Note")
    table = Table(
        caption=caption,
        columns=columns,
        rows=tuple(
            (
                Cell(text=row.name),
                _bits(row.bits_per_weight),
                *(_quantity(row.metrics, field) for field in shown),
                Cell(text=describe_fit(row.fits)),
                Cell(text=row.note),
            )
            for row in rows
        ),
        numeric=frozenset(range(1, len(shown) + 2)),
    )
    return Section(title=title, paragraphs=paragraphs, table=table)


def _budget(data: ReportData) -> Section:
    if not data.bounds:
        return Section(title="Budget")
    rows = tuple(
        (
            Cell(text=METRIC_TITLES.get(bound.field, "Accuracy drop")),
            Cell(text=format_metric(bound.field, bound.limit), sort=bound.limit),
            Cell(text=format_quantity(bound.field, bound.value)),
            Cell(text=describe_fit(bound.fits)),
        )
        for bound in data.bounds
    )
    columns = ("Quantity", "Limit", "This plan", "Fits")
    table = Table(
        caption="Every limit of the budget", columns=columns, rows=rows, numeric=frozenset({1, 2})
    )
    return Section(title="Budget", table=table)


def _predicted_and_measured(data: ReportData) -> Section:
    rows = tuple(
        (
            Cell(text=title),
            _quantity(data.predicted, field),
            _quantity(data.measured, field),
            Cell(text=_how(data.measured, field) or _how(data.predicted, field)),
        )
        for field, title in METRIC_TITLES.items()
        if getattr(data.predicted, field) is not None or getattr(data.measured, field) is not None
    )
    if not rows:
        return Section(title="Predicted and measured")
    columns = ("Quantity", "Predicted", "Measured", "How")
    table = Table(
        caption="What was predicted before and measured after",
        columns=columns,
        rows=rows,
        numeric=frozenset({1, 2}),
    )
    return Section(title="Predicted and measured", table=table)


def _layers(data: ReportData) -> Section:
    if not data.layers:
        return Section(title="Layers")
    rows = tuple(_layer_cells(layer) for layer in data.layers)
    columns = (
        *("Layer", "Operator", "Scheme", "Algorithm", "Weights", "Size", "Latency"),
        *("Bound by", "Divergence share", "Reason", "Next cheaper", "Next better"),
    )
    table = Table(
        caption="Every layer; click a heading to sort",
        columns=columns,
        rows=rows,
        numeric=frozenset({4, 5, 6, 8}),
    )
    text = (
        "Size is the weight with its scales. Latency, what most of it is spent on, and the share "
        "of the divergence are modelled per layer; ± is the standard error of that share, by the "
        "samples it was estimated from. Next cheaper: the option with fewer bytes that "
        "loses least. Next better: the option with less divergence that costs fewest bytes."
    )
    return Section(title="Layers", paragraphs=(text,), table=table)


def _layer_cells(layer: LayerRow) -> tuple[Cell, ...]:
    return (
        Cell(text=layer.name),
        Cell(text=layer.op),
        Cell(text=layer.scheme),
        Cell(text=layer.algorithm),
        Cell(text=format_count(layer.params), sort=layer.params),
        Cell(text=MODELLED_MARK + format_bytes(layer.size_bytes), sort=layer.size_bytes),
        Cell(text=MODELLED_MARK + format_seconds(layer.latency_s), sort=layer.latency_s),
        Cell(text=layer.bound),
        Cell(
            text=MODELLED_MARK + _share(layer),
            sort=layer.divergence_share,
            hint=f"divergence {format_number(layer.divergence)}",
        ),
        Cell(text=layer.reason),
        Cell(text=_option(layer.cheaper)),
        Cell(text=_option(layer.better)),
    )


def _share(layer: LayerRow) -> str:
    share = format_percent(layer.divergence_share)
    # An error that would be written as nothing is left out.
    shown = layer.error_share is not None and layer.error_share >= SHOWN_ERROR
    return f"{share} ± {format_percent(layer.error_share or 0.0)}" if shown else share


def _option(option: Option | None) -> str:
    if option is None:
        return UNKNOWN
    return (
        f"{option.scheme}/{option.algorithm}: {MODELLED_MARK}{format_bytes(option.size_bytes)}, "
        f"divergence {MODELLED_MARK}{format_number(option.divergence)}"
    )


def _kept_float(data: ReportData) -> Section:
    title = "Kept in floating point"
    rows = tuple(
        (Cell(text=layer.name), Cell(text=layer.scheme), Cell(text=layer.reason))
        for layer in data.kept_float
    )
    if not rows:
        return Section(title=title, paragraphs=("No layer was kept in floating point.",))
    table = Table(
        caption="Layers without integers, and why", columns=("Layer", "Scheme", "Why"), rows=rows
    )
    return Section(title=title, table=table)


def _excluded(data: ReportData) -> Section:
    title = "Options that cannot run"
    layers: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for layer in data.layers:
        # One scheme may be excluded once per rounding algorithm; it is one fact.
        for key in dict.fromkeys((option.scheme, option.reason) for option in layer.excluded):
            layers[key].append(layer.name)
    rows = tuple(
        (
            Cell(text=scheme),
            Cell(text=reason),
            Cell(text=", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")),
        )
        for (scheme, reason), names in layers.items()
    )
    if not rows:
        return Section(title=title)
    table = Table(
        caption="Schemes that were ruled out", columns=("Scheme", "Why", "Layers"), rows=rows
    )
    return Section(title=title, table=table)


def _tensors(data: ReportData) -> Section:
    title = "Static activation tensors"
    rows = tuple(
        (
            Cell(text=tensor.name),
            Cell(text=tensor.dtype if tensor.quantized else "float"),
            Cell(text=format_number(tensor.scale, 6), sort=tensor.scale),
            Cell(text=str(tensor.zero_point), sort=tensor.zero_point),
            Cell(text=MODELLED_MARK + format_number(tensor.divergence), sort=tensor.divergence),
        )
        for tensor in data.tensors
    )
    if not rows:
        return Section(title=title)
    table = Table(
        caption="real = (integer - zero point) x scale; float: range known, left in float",
        columns=("Tensor", "Stored as", "Scale", "Zero point", "Divergence"),
        rows=rows,
        numeric=frozenset({2, 3, 4}),
    )
    return Section(title=title, table=table)


def _optimality(data: ReportData) -> Section:
    return Section(
        title="How good the search was",
        paragraphs=(
            f"Model gap: {format_percent(data.model_gap)}. How far the solver's best assignment "
            f"is from the bound it proved. It is about the modelled divergence only, and says "
            f"nothing on whether the model is right.",
            f"Measured regret: {format_number(data.measured_regret)}. This plan's measured "
            f"divergence less the lowest one measured among the trials that could have been chosen "
            f"({data.trial_count} trials kept); 0 means that none measured better. It says nothing "
            f"on assignments that were not tried, and an objective may accept some for speed.",
        ),
    )


def _provenance(data: ReportData) -> Section:
    made = data.provenance
    calibration = made.calibration
    rows = [
        ("Model", data.model or "given as an object"),
        ("Model fingerprint", data.fingerprint),
        ("Calibration", "synthetic" if calibration.synthetic else "data that the user gave"),
        (
            "Calibration samples",
            f"{calibration.scoring_samples} for scoring, {calibration.held_out_samples} held out, "
            f"in {calibration.batches} batches",
        ),
        ("Calibration digest", calibration.digest),
        ("Outputs", ", ".join(f"{name}: {kind}" for name, kind in sorted(made.outputs.items()))),
        ("Pins", ", ".join(f"{glob}={scheme}" for glob, scheme in data.pins.items()) or "none"),
        ("Bias correction", "on" if data.bias_correction else "off"),
        ("Observer of static ranges", data.observer),
        ("Channels rescaled", "on" if data.equalise else "off"),
        ("Seed", str(made.seed)),
        ("Trials", str(made.trials)),
        ("Profile digest", made.profile_digest),
        ("Tensors digest", data.tensors_sha256 or "none"),
        *((f"{name} version", version) for name, version in sorted(made.versions.items())),
    ]
    table = Table(
        caption="What is needed to make this plan again",
        columns=("What", "Value"),
        rows=tuple((Cell(text=label), Cell(text=value)) for label, value in rows),
    )
    return Section(title="Provenance", table=table)


def _bits(bits: float | None) -> Cell:
    if bits is None:
        return Cell(text=UNKNOWN)
    return Cell(text=MODELLED_MARK + format_number(bits), sort=bits)


def _quantity(metrics: Metrics, field: str) -> Cell:
    quantity = getattr(metrics, field)
    if quantity is None:
        return Cell(text=UNKNOWN)
    hint = f"{quantity.origin}: {quantity.how}" if quantity.how else quantity.origin
    return Cell(text=format_quantity(field, quantity), sort=quantity.value, hint=hint)


def _how(metrics: Metrics, field: str) -> str:
    quantity = getattr(metrics, field)
    return "" if quantity is None else str(quantity.how)
