"""The Plan: which precision for every layer, and why. Plain data; holds no tensor or module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from advisor.profiles.costparts import EnergyParts, MemoryParts
from advisor.profiles.timeparts import BoundBy, TimeParts

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from advisor.targets.base import Artifact

SCHEMA = 6
"""Version of plan.json: raised when a field is added, dropped or changes its meaning. A file of
another version is refused, never guessed at."""

Origin = Literal["measured", "modelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A number that says where it comes from.

    origin "measured": obtained by running the simulation or the artifact (``how`` says which and
    on what); "modelled": computed from a profile or predicted by the sensitivity probe.
    """

    value: float
    origin: Origin
    how: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What a plan costs and loses. None: not known.

    size_bytes: weights, scales and constants. file_bytes: of the file they are in, with its graph.
    memory_bytes: weights as the runtime keeps them plus activations at
    their peak at the deployment batch, or opening the model where that takes more; the runtime's
    own code and data come on top. latency_s: one forward at the deployment batch. energy_j: the
    same forward. divergence: KL in nats per prediction, or squared error over the reference's
    power.
    metric: the user's metric, higher is better. partitions: parts of the model that the runtime
    hands to its delegate; None where it has none.
    """

    size_bytes: Quantity | None = None
    file_bytes: Quantity | None = None
    memory_bytes: Quantity | None = None
    latency_s: Quantity | None = None
    energy_j: Quantity | None = None
    divergence: Quantity | None = None
    metric: Quantity | None = None
    partitions: Quantity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """What a plan loses of the user's metric, as a share of the float model's.

    low, high: interval of 95 % by a paired bootstrap over ``examples``; None, and 0 examples, where
    the metric is one number. limit: share that may be lost; None where the metric was no limit.
    """

    value: float
    low: float | None = None
    high: float | None = None
    examples: int = 0
    limit: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What one (scheme, algorithm) would cost a layer; ``reason`` is set when it cannot run.

    size_bytes, latency_s: of this layer alone. bound: what most of the time is spent on; None
    when the option cannot run. divergence: predicted, of this layer alone.
    """

    scheme: str
    algorithm: str
    size_bytes: int = 0
    latency_s: float = 0.0
    bound: BoundBy | None = None
    divergence: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDecision:
    """The decision for one layer (one call of an operator with a weight, or of a product of two
    activations, whose ``weight`` is "").

    group: layers with the same group take the same scheme. params: number of weights.
    size_bytes: weight and scales on disk (0 for the second layer of a tied weight).
    latency_s, divergence: modelled. error: standard error of the divergence; None where it is not
    known. bound: what most of the time is spent on. reason: why this scheme; always set when kept
    in float.
    """

    name: str
    op: str
    group: str
    weight: str
    weight_shape: tuple[int, ...]
    params: int
    scheme: str
    algorithm: str
    size_bytes: int
    latency_s: float
    bound: BoundBy
    divergence: float
    reason: str
    error: float | None = None
    options: tuple[Option, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDecision:
    """Static parameters of one activation tensor: real = (integer - zero_point) * scale.

    quantized: False for a tensor that this plan leaves in float (kept so that a pin can use it).
    """

    name: str
    scale: float
    zero_point: int
    dtype: str
    quantized: bool
    divergence: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Another assignment beside the plan: a uniform baseline or a point of the Pareto front.

    schemes: layer name to "scheme" (or "scheme/algorithm"). fits: inside every budget.
    note: why it does not fit, or how many layers could not take the scheme.
    """

    name: str
    metrics: Metrics
    schemes: Mapping[str, str] = field(default_factory=dict[str, str])
    fits: bool = True
    note: str = ""


def latencies(alternatives: Sequence[Alternative]) -> dict[str, float]:
    """Seconds of one forward by name, of those for which it is known."""
    known = ((each.name, each.metrics.latency_s) for each in alternatives)
    return {name: latency.value for name, latency in known if latency is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What the numbers were measured on. digest: SHA-256 over the calibration tensors."""

    synthetic: bool
    batches: int
    scoring_samples: int
    held_out_samples: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How to make this plan again. versions: of every package whose numbers matter.

    costs_digest: SHA-256 of the layer times measured on this machine; empty when they are modelled.
    """

    seed: int
    trials: int
    versions: Mapping[str, str]
    calibration: Calibration
    profile_digest: str
    outputs: Mapping[str, str]
    costs_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Plan:
    """The winning assignment with its predictions, its rivals and its provenance.

    budget: canonical text, such as "size<=12000000B". outcome: which case of the objective
    applied, in a sentence. model_gap: relative distance of the surrogate's optimum to its proven
    bound. measured_regret: best measured divergence among trials against the chosen one's.
    fingerprint: SHA-256 of the model's graph and weights. model: "package.module:factory" or a
    path when known, so that apply and compile can load it again. input_tree: JSON of the example
    inputs' structure, whose tensors are in plan.safetensors. platform, options: the profile's
    systems and how it wants files written, which ``compile`` goes by. breakdown: what the predicted
    latency is spent on. memory_parts, energy_parts: what the predicted memory and energy are made
    of; no energy where the profile has no figures of it. arithmetic: by scheme, what the device
    computes it in, or why it has none. bias_correction, observer, equalise: the global settings
    that won the search. drop: of the user's metric; None without one.
    """

    target: str
    runtime: str
    objective: str
    budget: str
    outcome: str
    batch: int
    sequence: int | None
    context: int | None
    threads: int | None
    fingerprint: str
    layers: tuple[LayerDecision, ...]
    tensors: tuple[TensorDecision, ...]
    predicted: Metrics
    measured: Metrics
    breakdown: TimeParts
    memory_parts: MemoryParts
    energy_parts: EnergyParts | None
    arithmetic: Mapping[str, str]
    model_gap: float
    measured_regret: float
    baselines: tuple[Alternative, ...]
    pareto: tuple[Alternative, ...]
    trials: tuple[Alternative, ...]
    notes: tuple[str, ...]
    provenance: Provenance
    bias_correction: bool = False
    observer: str = "minmax"
    equalise: bool = False
    input_tree: str = ""
    drop: Drop | None = None
    pins: Mapping[str, str] = field(default_factory=dict[str, str])
    platform: Mapping[str, str] = field(default_factory=dict[str, str])
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    model: str | None = None
    tensors_sha256: str = ""
    schema: int = SCHEMA

    def apply(self) -> torch.nn.Module:
        """The simulation: a module with the model's own signature that computes like the plan.

        Raises:
            PlanError: the model is not known here; pass it to ``Plan.load(path, model=...)``.
        """
        from advisor.binding import quantized_of
        from advisor.passes.fx import with_code

        return with_code(quantized_of(self).module)

    def compile(
        self, out_dir: str | Path, runtime: str | None = None, *, options: object | None = None
    ) -> Artifact:
        """Lower the plan to files of its runtime, read every layer back, and check the numbers.

        options: how the files are written where the runtime has a choice, by its own dataclass
        (``advisor.targets.tflite.TfliteOptions``) or as a mapping such as {"io": "int8"}; what is
        not given is as the profile or the runtime has it. No option changes the plan.

        Raises:
            UsageError: the runtime has no such option; says which it has.
            UnsupportedError: the runtime's version no longer builds for the plan's device.
            MissingDependencyError: the runtime's packages or its emitter are missing.
            VerificationError: the artifact does not carry or compute the plan.
            OutputError: ``out_dir`` cannot be written; nothing is left half-written.
        """
        from advisor.lower import compile_plan

        return compile_plan(self, out_dir, runtime, options)

    def report(self, path: str | Path) -> Path:
        """Write the report as .html, .md or .json, chosen by suffix; returns the path."""
        from advisor.report import write_report

        return write_report(self, path)

    def save(self, path: str | Path) -> Path:
        """Write plan.json, plan.safetensors and plan.measured.json; returns the JSON's path."""
        from advisor.planfile import save_plan

        return save_plan(self, path)

    @classmethod
    def load(cls, path: str | Path, model: Any = None) -> Plan:
        """Read a saved plan; ``model`` (the float model) lets apply and compile work.

        Raises:
            PlanError: corrupt, of another schema, tensors missing, or for another model.
        """
        from advisor.planfile import load_plan

        return load_plan(path, model)

    def diff(self, other: Plan) -> str:
        """What differs between two plans, one line per layer or number; empty when nothing."""
        from advisor.report.diff import diff_plans

        return diff_plans(self, other)

    def pin(self, layer: str, scheme: str) -> Plan:
        """This plan with the layers that match the glob ``layer`` moved to ``scheme``.

        Everything else stays; use ``advise(..., pin=...)`` to plan anew around a pin.

        Raises:
            UnsupportedError: no layer matches, or the runtime cannot run it so.
            InfeasibleError: the result breaks the budget.
        """
        from advisor.pinning import pin_layers

        return pin_layers(self, layer, scheme)

    def _repr_html_(self) -> str:
        from advisor.report import render_html

        return render_html(self)
