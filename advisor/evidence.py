"""What is known before the search: calibration data, the simulator, sensitivities, the problem."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from advisor.assemble import build_problem, build_rescaled, error_columns
from advisor.inferred import synthetic_calibration
from advisor.inputs import check_finite, check_inputs, split_label
from advisor.measure.costs import MeasuredCosts
from advisor.outputs import choose_kinds
from advisor.passes.calibrate import observe, spool_calibration
from advisor.passes.divergence import measure_powers
from advisor.passes.fx import flatten_inputs
from advisor.passes.graph import Graph, Layer
from advisor.passes.group import class_tensors
from advisor.passes.rounding.store import RoundedWeights
from advisor.passes.sensitivity import Column, Question, Sensitivity, probe
from advisor.prepare import Prepared
from advisor.profiles.host import HOST
from advisor.search.problem import Knobs, Problem
from advisor.setting import Setting
from advisor.simulate import Loss, Simulator, can_equalise, channel_importance
from advisor.targets.capability import DynamicRules

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done and the steps in all."""

SYNTHETIC_SAMPLES: Final = 64
MOST_SAMPLES: Final = 32
MOST_BYTES: Final = 2**28
"""Up to this many samples, and bytes of all their activations, small batches are run as one."""

SYNTHETIC_NOTE: Final = (
    "calibration is synthetic: random inputs; ranges and divergences may be far from those of "
    "real data; pass calibration="
)
LOSS_NOTE: Final = (
    "a loss was given: predictions are of the outputs' divergence, but every number measured as "
    "divergence is that loss, and the limits on divergence are held against it"
)
PROBE_KNOBS: Final[Knobs] = {"observer": "mse"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What every choice is predicted to cost and to lose."""

    sensitivity: Sensitivity
    problem: Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """sensitivity, problem: of the model itself. equalised: the same of the model equalised, where
    that can change something. outputs: by output name, its kind and why. notes: what a user should
    know of all this.
    """

    prepared: Prepared
    simulator: Simulator
    sensitivity: Sensitivity
    problem: Problem
    outputs: Mapping[str, str]
    synthetic: bool
    notes: tuple[str, ...]
    equalised: Predictions | None = None

    def under(self, knobs: Knobs) -> Predictions:
        """The predictions for trials with these knobs."""
        if self.equalised is not None and knobs.get("equalise", False):
            return self.equalised
        return Predictions(sensitivity=self.sensitivity, problem=self.problem)


def gather(
    prepared: Prepared,
    *,
    output: str | Mapping[str, str] | None,
    loss: Loss | None,
    seed: int,
    folder: Path,
    say: Progress,
) -> Evidence:
    """Calibrate and score.

    Raises:
        CalibrationError, InputError: the data is empty, not finite, or does not fit the model.
        UsageError: ``output`` names an unknown output or kind.
    """
    setting, graph = prepared.setting, prepared.setting.graph
    say("calibrate", 0, 1)
    # A loss of the user's may depend on what is in a batch together.
    most = 1 if loss is not None else samples_at_once(setting)
    data = spool_calibration(graph, _flat_batches(prepared, seed), folder, most=most)
    tensors = frozenset(site.tensor for site in setting.regions.sites)
    layers = [layer for layer in graph.layers if _has_input_mean(layer)]
    observations = observe(graph, data.scoring, tensors, layers)
    kinds, said = choose_kinds(graph, data.references.read(0), output)
    simulator = Simulator(
        setting=setting,
        data=data,
        observations=observations,
        classes=class_tensors(graph, setting.capability),
        kinds=kinds,
        powers=measure_powers(data.references),
        rounded=RoundedWeights(
            graph,
            scales=setting.capability.scale_rounding,
            importance=channel_importance(setting, graph, data),
        ),
        loss=loss,
    )
    say("calibrate", 1, 1)
    say("score", 0, 1)
    sensitivity = score_choices(prepared, simulator, PROBE_KNOBS, seed)
    simulator.losses = input_losses(setting, sensitivity)
    equalised = _predict_equalised(prepared, simulator, seed) if can_equalise(setting) else None
    say("score", 1, 1)
    synthetic = prepared.batches is None
    notes = (prepared.example.note, *graph.notes, *data.notes)
    notes += (SYNTHETIC_NOTE,) if synthetic else ()
    notes += () if loss is None else (LOSS_NOTE,)
    notes += setting.profile.notes if setting.profile.name == HOST else ()
    notes += (measured_note(setting.measured),) if setting.measured is not None else ()
    return Evidence(
        prepared=prepared,
        simulator=simulator,
        sensitivity=sensitivity,
        problem=build_problem(setting, sensitivity),
        outputs=said,
        synthetic=synthetic,
        notes=tuple(dict.fromkeys(note for note in notes if note)),
        equalised=equalised,
    )


def measured_note(costs: MeasuredCosts) -> str:
    """What times measured on this machine are worth."""
    return (
        f"latencies are sums of terms found from {costs.models} models timed on this machine: they "
        f"are off by {costs.error:.1%} (median, each model left out in turn), where repeating a "
        f"timing differs by {costs.noise:.1%}; plans that lie closer together cannot be ranked"
    )


def samples_at_once(setting: Setting) -> int:
    """How many samples are run together, so that their activations stay small beside the model."""
    bytes_each = sum(info.size_bytes for info in setting.shapes.values()) / setting.batch
    return max(1, min(MOST_SAMPLES, int(MOST_BYTES // max(bytes_each, 1.0))))


def input_losses(setting: Setting, sensitivity: Sensitivity) -> dict[str, float]:
    """Predicted divergence of rounding what linear layers read, by tensor: the most of any way."""
    ways: dict[str, dict[str, list[Column]]] = {}
    inputs = {layer.name: layer.input for layer in setting.graph.layers if layer.op == "linear"}
    for column in sensitivity.scores:
        kind, first, second = column
        reader = {"edge": second, "dynamic": first}.get(kind, "")
        if reader in inputs:
            way = second if kind == "dynamic" else ""
            ways.setdefault(inputs[reader], {}).setdefault(way, []).append(column)
    return {
        tensor: max(sensitivity.divergence(*columns) for columns in each.values())
        for tensor, each in ways.items()
    }


def _has_input_mean(layer: Layer) -> bool:
    """Layers whose bias could be corrected: those that read an activation and have a bias.

    Under a transposed convolution the mean error differs from pixel to pixel, so none fits all.
    """
    unfit = layer.op == "embedding" or layer.op.startswith("conv_transpose")
    return layer.frozen is None and not unfit and layer.bias is not None


def _predict_equalised(prepared: Prepared, simulator: Simulator, seed: int) -> Predictions:
    knobs: Knobs = {**PROBE_KNOBS, "equalise": True}
    sensitivity = score_choices(prepared, simulator, knobs, seed)
    graph = simulator.basis(knobs).graph
    return Predictions(
        sensitivity=sensitivity, problem=build_rescaled(prepared.setting, graph, sensitivity)
    )


def score_choices(prepared: Prepared, simulator: Simulator, knobs: Knobs, seed: int) -> Sensitivity:
    """Score every error that some candidate of some group makes, on the scoring half."""
    setting, basis = prepared.setting, simulator.basis(knobs)
    layers = {layer.name: layer for layer in setting.graph.layers}
    weights: dict[Column, tuple[Layer, str, str]] = {}
    dynamic: dict[Column, tuple[Layer, DynamicRules]] = {}
    for group in setting.groups:
        for option in setting.space.candidates[group.name]:
            for layer in (layers[name] for name in group.layers):
                for column in error_columns(layer, option, setting.capability):
                    if column[0] == "dynamic":
                        rules = setting.capability.dynamic[option.scheme]
                        dynamic[column] = (layer, rules.of(layer))
                    else:
                        scheme, _, algorithm = column[2].partition("/")
                        weights[column] = (layer, scheme, algorithm)
    return probe(
        basis.graph,
        simulator.data.scoring,
        Question(
            weights=tuple(weights.values()),
            dynamic=tuple(dynamic.values()),
            batch=setting.batch,
            sites=setting.regions.sites,
            params=simulator.params(knobs),
        ),
        rounded=basis.rounded,
        kinds=simulator.kinds,
        powers=simulator.powers,
        seed=seed,
    )


def _flat_batches(prepared: Prepared, seed: int) -> Iterable[list[Any]]:
    """Every calibration batch, checked, as one value per placeholder."""
    graph, example = prepared.setting.graph, prepared.example
    if prepared.batches is None:
        for item in synthetic_calibration(example, SYNTHETIC_SAMPLES, seed, model=prepared.model):
            yield flatten_inputs(graph.module, item.args, item.kwargs)
        return
    dynamic = _dynamic_by_name(example.tensors(), graph)
    for index, item in enumerate(prepared.batches):
        given, _label = split_label(prepared.model, item, reference=example)
        check_inputs(example, given, dynamic=dynamic)
        check_finite(given, index)
        yield flatten_inputs(graph.module, given.args, given.kwargs)


def _dynamic_by_name(
    tensors: Mapping[str, torch.Tensor], graph: Graph
) -> dict[str, Mapping[int, str]]:
    """Which dimensions of the example inputs may change, by the names the user knows."""
    flat = flatten_inputs(graph.module, graph.args, graph.kwargs)
    names = [
        name
        for name, value in zip(graph.input_names, flat, strict=True)
        if isinstance(value, torch.Tensor)
    ]
    return {user: graph.dynamic.get(name, {}) for user, name in zip(tensors, names, strict=True)}
