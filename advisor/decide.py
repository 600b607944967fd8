"""Write the Plan: decisions with reasons, from the chosen assignment and everything known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from math import isfinite
from typing import TYPE_CHECKING

from advisor.assemble import error_columns
from advisor.explain import Terms, explain
from advisor.formats import scheme_named
from advisor.passes.graph import ActivationParams, Layer
from advisor.passes.group import Group
from advisor.plan import (
    Alternative,
    LayerDecision,
    Metrics,
    Option,
    Quantity,
    TensorDecision,
)
from advisor.search.problem import Candidate, Choice, Evaluation
from advisor.setting import Setting

if TYPE_CHECKING:
    from advisor.passes.sensitivity import Sensitivity

SHOWN_SHARE = 0.01
"""Of the predicted loss: layers that lose less are not worth a word."""

PACKAGES = ("quantadvisor", "torch", "numpy", "scipy", "optuna", "onnx", "onnxruntime")
"""Packages whose version can change a plan's numbers."""


def modelled(
    evaluation: Evaluation,
    profile: str,
    latency_source: str,
    *,
    file_bytes: float | None = None,
    partitions: int | None = None,
) -> Metrics:
    """Predicted metrics of an assignment. file_bytes: see ``predict_file_bytes``. partitions: of
    the runtime's delegate."""

    def quantity(value: float | None, how: str) -> Quantity | None:
        return None if value is None else Quantity(value=value, origin="modelled", how=how)

    return Metrics(
        size_bytes=quantity(evaluation.size_bytes, "weights, scales and constants as stored"),
        file_bytes=quantity(file_bytes, "the size, and the file's graph by rules of its runtime"),
        memory_bytes=quantity(
            evaluation.memory_bytes, "weights resident plus live activations, or opening the model"
        ),
        latency_s=quantity(evaluation.latency_s, latency_source),
        energy_j=quantity(evaluation.energy_j, f"energy figures of {profile}"),
        divergence=quantity(evaluation.divergence, "sensitivity probe, interactions left out"),
        partitions=quantity(partitions, "which operators the runtime's delegate is known to take"),
    )


def measured(
    divergence: float | None,
    metric: float | None,
    samples: int,
    *,
    synthetic: bool,
    is_loss: bool,
) -> Metrics:
    """Measured metrics of an assignment, in the torch simulation; one that overflowed has none."""
    kind = "synthetic" if synthetic else "held-out calibration"
    what = "the user's loss of the simulation" if is_loss else "simulation"
    return Metrics(
        divergence=None
        if divergence is None or not isfinite(divergence)
        else Quantity(
            value=divergence, origin="measured", how=f"{what} on {samples} {kind} samples"
        ),
        metric=None
        if metric is None
        else Quantity(value=metric, origin="measured", how="the user's metric on the simulation"),
    )


def alternative(
    setting: Setting, name: str, choice: Choice, metrics: Metrics, *, fits: bool, note: str = ""
) -> Alternative:
    """An assignment as plain data."""
    schemes: dict[str, str] = {}
    for group, index in zip(setting.groups, choice, strict=True):
        option = setting.space.candidates[group.name][index]
        schemes.update({layer: label(option) for layer in group.layers})
    return Alternative(name=name, metrics=metrics, schemes=schemes, fits=fits, note=note)


def label(option: Candidate) -> str:
    """ "w4-g32/mse", or "fp32" for schemes without an algorithm."""
    return option.scheme if option.algorithm == "none" else f"{option.scheme}/{option.algorithm}"


def decide_layers(
    setting: Setting,
    choice: Choice,
    sensitivity: Sensitivity,
    pinned: Mapping[str, tuple[str, str]],
    terms: Terms,
) -> tuple[LayerDecision, ...]:
    """One decision per layer, in execution order, with every option it had.

    terms: in which the layers are explained.
    """
    places = {group.name: index for index, group in enumerate(setting.groups)}
    chosen = {
        name: (group, setting.space.candidates[group.name][index])
        for group, index in zip(setting.groups, choice, strict=True)
        for name in group.layers
    }
    owner: dict[str, str] = {}
    decisions: list[LayerDecision] = []
    for layer in setting.graph.layers:
        group, option = chosen[layer.name]
        is_owner = owner.setdefault(layer.weight, layer.name) == layer.name
        cost = setting.cost(layer, option.scheme)
        options = list_options(setting, layer, group, sensitivity)
        divergence, error = layer_divergence(setting, layer, option, sensitivity)
        pin = pinned.get(layer.name)
        decisions.append(
            LayerDecision(
                name=layer.name,
                op=layer.op,
                group=group.name,
                weight=layer.weight,
                weight_shape=layer.weight_shape,
                params=layer.weight_count,
                scheme=option.scheme,
                algorithm=option.algorithm,
                size_bytes=cost.size_bytes if is_owner else 0,
                latency_s=cost.latency_s,
                bound=cost.parts.bound,
                divergence=divergence,
                error=error if isfinite(error) else None,
                reason=explain(layer, option, options, pin, terms, places[group.name]),
                options=options,
            )
        )
    whole = sum(decision.divergence for decision in decisions)
    return tuple(_with_share(decision, whole) for decision in decisions)


def _with_share(decision: LayerDecision, whole: float) -> LayerDecision:
    """The reason, with the layer's share of what all layers lose alone, from 1 % on."""
    share = decision.divergence / whole if whole > 0 else 0.0
    if share < SHOWN_SHARE:
        return decision
    return replace(decision, reason=f"{decision.reason}; {share:.0%} of the predicted loss")


def list_options(
    setting: Setting, layer: Layer, group: Group, sensitivity: Sensitivity
) -> tuple[Option, ...]:
    """Everything the layer could be, and why it could not be the rest."""
    possible = [
        Option(
            scheme=option.scheme,
            algorithm=option.algorithm,
            size_bytes=setting.cost(layer, option.scheme).size_bytes,
            latency_s=setting.cost(layer, option.scheme).latency_s,
            bound=setting.cost(layer, option.scheme).parts.bound,
            divergence=layer_divergence(setting, layer, option, sensitivity)[0],
        )
        for option in setting.space.candidates[group.name]
    ]
    refused = [
        Option(scheme=scheme, algorithm="none", reason=reason)
        for scheme, reason in setting.space.refused[layer.name].items()
    ]
    return (*possible, *refused)


def layer_divergence(
    setting: Setting, layer: Layer, option: Candidate, sensitivity: Sensitivity
) -> tuple[float, float]:
    """Predicted divergence of this layer alone: its weight, and its own quantized inputs; and the
    standard error of that number.

    A weight and an input that is quantized at run time are one error; a static input has a term
    of its own, because its integers may serve other readers too.
    """
    columns = error_columns(layer, option, setting.capability)
    terms = [tuple(columns)] if columns else []
    for tensor in dict.fromkeys((layer.input, layer.other)):
        edge = ("edge", tensor or "", layer.name)
        if scheme_named(option.scheme).is_static and edge in sensitivity.scores:
            terms.append((edge,))
    total = sum(sensitivity.divergence(*term) for term in terms)
    return total, sensitivity.error(*terms)


def decide_tensors(
    setting: Setting,
    params: Mapping[str, ActivationParams],
    quantized: Mapping[str, bool],
    sensitivity: Sensitivity,
) -> tuple[TensorDecision, ...]:
    """Parameters of every tensor that could be quantized, and which of them are."""
    found: list[TensorDecision] = []
    for site in setting.regions.sites:
        column = ("tensor", site.tensor, "")
        known = column in sensitivity.scores and quantized.get(site.tensor, False)
        found.append(
            TensorDecision(
                name=site.tensor,
                scale=params[site.tensor].scale,
                zero_point=params[site.tensor].zero_point,
                dtype=params[site.tensor].dtype,
                quantized=site.tensor in quantized,
                divergence=sensitivity.divergence(column) if known else 0.0,
            )
        )
    return tuple(found)


def package_versions() -> dict[str, str]:
    """Version of every installed package in ``PACKAGES``, without local parts such as "+cpu"."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue  # an optional runtime that is not installed has no version to record
    return found
