"""Take one architecture all the way: captured, planned, emitted, read back, executed."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from advisor import Plan, advise
from advisor.binding import binding_of, params_of
from advisor.errors import AdvisorError
from advisor.inputs import normalise_inputs
from advisor.passes.candidates import regions_of
from advisor.passes.graph import Graph, LayerAssignment, QuantizedGraph
from advisor.passes.quantize import fit_biases, quantize, round_weights
from advisor.passes.rounding.store import RoundedWeights
from advisor.targets.acceptance import ACCEPTANCE_FILE
from advisor.targets.base import Mismatch, Target, Verification
from advisor.targets.options import configure
from advisor.targets.platforms import shortfall
from advisor.targets.registry import target_named
from advisor.targets.simulation import simulation_of
from advisor.targets.tensorrt import TensorrtTarget
from advisor.targets.tensorrt.artifact import TensorrtArtifact
from advisor.targets.tensorrt.emit import write_shipped
from tests.zoo.models import Architecture

if TYPE_CHECKING:
    from advisor.targets.tensorrt.options import ComputeCapability

Assignment = Mapping[str, LayerAssignment]

CAPTURE_TOLERANCE: Final = 1e-5
"""Relative Frobenius distance: folding constants reorders sums."""

KEPT: Final = "kept in float: "

MIXED: Final = "mixed"
"""Among the plans to emit, the one that takes the schemes in turn. "mixed@86": those that compute
capability 8.6 has, for which it is then emitted."""

FLOAT: Final = LayerAssignment(scheme="fp32", algorithm="none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one architecture.

    dynamic: dimensions that may change, by name. kept: number of layers by the reason why they
    stay in float. schemes: for "plan" and every other plan the problem that verifying its artifact
    found, or "". mixed: number of layers by scheme in the plan of that name. parts: by plan, what
    the runtime told about how it splits the model. problem: why it got no further, or "".
    """

    name: str
    source: str
    layers: int = 0
    quantizable: int = 0
    kept: Mapping[str, int] = field(default_factory=dict[str, int])
    dynamic: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    chosen: Mapping[str, int] = field(default_factory=dict[str, int])
    schemes: Mapping[str, str] = field(default_factory=dict[str, str])
    mixed: Mapping[str, int] = field(default_factory=dict[str, int])
    parts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Captured, planned, and every scheme emitted, read back and executed."""
        return not self.problem and bool(self.schemes) and not any(self.schemes.values())


def examine(
    entry: Architecture,
    plans: Sequence[str],
    *,
    runtime: str = "onnxruntime",
    profile: str = "intel-vnni",
    trials: int = 3,
    free: bool = True,
) -> Outcome:
    """Plan with free choice and compile, then emit more plans of the same graph.

    plans: schemes, each for all layers that can take it, and ``MIXED``. profile: whose schemes,
    costs and systems the plans are for. free: whether the plan of free choice is compiled too.
    """
    target = target_named(runtime)
    try:
        model = entry.build()
        plan = advise(
            model,
            target=profile,
            runtime=runtime,
            inputs=entry.inputs(1),
            trials=trials,
            cache=False,
        )
        graph = binding_of(plan).graph
    except AdvisorError as error:
        return Outcome(name=entry.name, source=entry.source, problem=_first_line(error))
    stuck = {layer.name: layer.frozen for layer in graph.layers if layer.frozen}
    verified: dict[str, str] = {}
    parts: dict[str, Any] = {}
    if free:
        verified["plan"], parts["plan"] = compile_plan(plan)
    turns = mixed(plan)
    made: dict[str, TensorrtArtifact] = {}  # by assignment: its file is the same for every GPU
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        for name in plans:
            scheme, _, sm = name.partition("@")
            able = {} if not sm else {"sm": sm}
            assignment = uniform(plan, name) if scheme != MIXED else mixed(plan, target, able)
            before = made.get(repr(assignment))
            if before is not None:
                verified[name] = _first(before.mismatches_on(cast("ComputeCapability", sm)))
            elif any(found.scheme != "fp32" for found in assignment.values()):
                quantized = quantize_under(plan, graph, assignment, target)
                path = Path(folder) / name
                verified[name], parts[name] = emit(
                    quantized, configure(target, runtime, able, {}), path
                )
                if runtime == "tensorrt" and not verified[name]:
                    made[repr(assignment)] = TensorrtArtifact.load(path)
    labels = {label for dims in graph.dynamic.values() for label in dims.values()}
    return Outcome(
        name=entry.name,
        source=entry.source,
        layers=len(graph.layers),
        quantizable=len(graph.layers) - len(stuck),
        kept=dict(Counter(reason.removeprefix(KEPT) for reason in stuck.values())),
        dynamic=tuple(sorted(labels)),
        left_out=tuple(note.partition(" ")[0] for note in graph.notes if "is left out" in note),
        chosen=dict(Counter(decision.scheme for decision in plan.layers)),
        schemes=verified,
        mixed=dict(Counter(found.scheme for found in turns.values()))
        if any(name.startswith(MIXED) for name in plans)
        else {},
        parts={name: found for name, found in parts.items() if found},
        problem=capture_problem(entry, model, graph),
    )


def capture_problem(entry: Architecture, model: nn.Module, graph: Graph) -> str:
    """Where the graph does not compute what the model does, at every batch it accepts; or ""."""
    for batch in (1, 3) if graph.batch is None else (graph.batch,):
        given = normalise_inputs(model, entry.inputs(batch))
        with torch.no_grad():
            wanted = tensors_in(model(*given.args, **given.kwargs))
            found = tensors_in(graph.module(*given.args, **given.kwargs))
        if len(found) != len(wanted):
            return f"{len(found)} outputs instead of {len(wanted)} at batch {batch}"
        for name, one, two in zip(graph.output_names, found, wanted, strict=True):
            distance = float((one.double() - two.double()).norm() / two.double().norm())
            if not distance <= CAPTURE_TOLERANCE:
                return f"{name} is {distance:.1e} from the model's at batch {batch}"
    return ""


def tensors_in(outputs: Any) -> list[Tensor]:
    """The tensors of a model's outputs, in order."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def uniform(plan: Plan, scheme: str) -> Assignment:
    """Every group that can take ``scheme`` under it, the others in float32."""
    able = {name: options.get(scheme) for name, options in _shared_options(plan).items()}
    return {
        decision.name: FLOAT
        if able[decision.group] is None
        else LayerAssignment(scheme=scheme, algorithm=str(able[decision.group]))
        for decision in plan.layers
    }


def mixed(
    plan: Plan, target: Target | None = None, platform: Mapping[str, str] | None = None
) -> Assignment:
    """Every group under the scheme that it can take and that the fewest groups before it have.

    platform: of these schemes only those that the target has on it.
    """
    known = {} if target is None else target.capability.schemes
    lacking = {name for name in known if shortfall(known[name].minimum, platform or {})}
    used: Counter[str] = Counter()
    chosen: dict[str, LayerAssignment] = {}
    for group, options in _shared_options(plan).items():
        able = [scheme for scheme in options if scheme != "fp32" and scheme not in lacking]
        scheme = min(able, key=lambda name: used[name], default="fp32")
        used[scheme] += 1
        chosen[group] = LayerAssignment(scheme=scheme, algorithm=options.get(scheme, "none"))
    return {decision.name: chosen[decision.group] for decision in plan.layers}


def _shared_options(plan: Plan) -> dict[str, dict[str, str]]:
    """By group the schemes that all its layers can take, each with one algorithm that they can."""
    shared: dict[str, list[tuple[str, str]]] = {}
    for decision in plan.layers:
        able = [(o.scheme, o.algorithm) for o in decision.options if not o.reason]
        before = shared.get(decision.group, able)
        shared[decision.group] = [option for option in before if option in able]
    return {group: dict(reversed(options)) for group, options in shared.items()}


def quantize_under(
    plan: Plan, graph: Graph, assignment: Assignment, target: Target
) -> QuantizedGraph:
    """The graph with this assignment, the plan's activation parameters and deployment."""
    capability, params = target.capability, params_of(plan)
    store = RoundedWeights(graph, limit_bytes=0, scales=capability.scale_rounding)
    tables = round_weights(graph, assignment, store)
    quantized = quantize(
        graph,
        assignment,
        weights=fit_biases(graph, assignment, tables, params, capability.static),
        params=params,
        regions=regions_of(graph, capability),
        rules=capability.static,
        dynamic=capability.dynamic,
    )
    return replace(quantized, batch=plan.batch, sequence=plan.sequence)


def compile_plan(plan: Plan) -> tuple[str, Any]:
    """Compile and verify; what went wrong or "", and how the runtime splits the model."""
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        path = Path(folder) / "artifact"
        try:
            plan.compile(path)
        except AdvisorError as error:
            return _first_line(error), None
        return "", _parts(path)


def emit(quantized: QuantizedGraph, target: Target, folder: Path) -> tuple[str, Any]:
    """Emit into ``folder`` and verify; the first mismatch or "", and how the runtime splits the
    model."""
    folder.mkdir()
    try:
        if isinstance(target, TensorrtTarget):
            verification = verify_in_memory(quantized, target, folder)
        else:
            verification = target.emit(quantized, folder).verify()
    except AdvisorError as error:
        return _first_line(error), None
    problem = _first(verification.mismatches) or "layers do not match"
    return "" if verification.ok else problem, _parts(folder)


def verify_in_memory(
    quantized: QuantizedGraph, target: TensorrtTarget, folder: Path
) -> Verification:
    """Verify against the graph itself: writing a simulation and reading it again, three times for
    every model, takes longer than all the rest, and other tests do it."""
    manifest = write_shipped(quantized, folder, target.options)
    names = tuple(record.name for record in manifest.inputs)
    return TensorrtArtifact.load(folder).verify(simulation_of(quantized, names))


def _first(mismatches: Sequence[Mismatch]) -> str:
    return "".join(f"{m.name}: expected {m.expected}, found {m.found}" for m in mismatches[:1])


def _parts(folder: Path) -> Any:
    """The parts that a delegate runs, and by name how many operators it leaves; if it says so."""
    found = json.loads((folder / ACCEPTANCE_FILE).read_text()).get("partitions")
    return found and {**found, "operators": dict(Counter(found["operators"]))}


def _first_line(error: AdvisorError) -> str:
    return " ".join(str(error).split())[:400]
