"""Take one architecture all the way: captured, planned, emitted, read back, executed."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

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
from advisor.targets.onnxruntime import TARGET
from tests.zoo.models import Architecture

CAPTURE_TOLERANCE: Final = 1e-5
"""Relative Frobenius distance: folding constants reorders sums."""

KEPT: Final = "kept in float: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one architecture.

    dynamic: dimensions that may change, by name. kept: number of layers by the reason why they
    stay in float. schemes: for "plan" and each uniform scheme, the layers under it, and the
    problem that verifying the artifact found, or "". problem: why it got no further, or "".
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
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Captured, planned, and every scheme emitted, read back and executed."""
        return not self.problem and bool(self.schemes) and not any(self.schemes.values())


def examine(entry: Architecture, schemes: Sequence[str], *, trials: int = 3) -> Outcome:
    """Plan with free choice and compile, then every uniform scheme on the same graph."""
    try:
        model = entry.build()
        plan = advise(
            model, target="intel-vnni", inputs=entry.inputs(1), trials=trials, cache=False
        )
        graph = binding_of(plan).graph
    except AdvisorError as error:
        return Outcome(name=entry.name, source=entry.source, problem=_first_line(error))
    stuck = {layer.name: layer.frozen for layer in graph.layers if layer.frozen}
    verified = {"plan": compile_problem(plan)}
    for scheme in schemes:
        quantized = uniform(plan, graph, scheme)
        if quantized is not None:
            verified[scheme] = emit_problem(quantized)
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


def uniform(plan: Plan, graph: Graph, scheme: str) -> QuantizedGraph | None:
    """Every group that can take ``scheme`` under it, the others in float32; None when none can."""
    able: dict[str, set[str]] = {}
    for decision in plan.layers:
        options = {o.algorithm for o in decision.options if o.scheme == scheme and not o.reason}
        able[decision.group] = able.get(decision.group, options) & options
    if not any(able.values()):
        return None
    assignment = {
        decision.name: LayerAssignment(scheme=scheme, algorithm=min(able[decision.group]))
        if able[decision.group]
        else LayerAssignment(scheme="fp32", algorithm="rtn")
        for decision in plan.layers
    }
    rules, params = TARGET.capability.static, params_of(plan)
    tables = fit_biases(graph, assignment, round_weights(graph, assignment), params, rules)
    return quantize(
        graph,
        assignment,
        weights=tables,
        params=params,
        regions=regions_of(graph, TARGET.capability),
        rules=rules,
    )


def compile_problem(plan: Plan) -> str:
    """Compile and verify; what went wrong, or ""."""
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        try:
            plan.compile(Path(folder) / "artifact")
        except AdvisorError as error:
            return _first_line(error)
    return ""


def emit_problem(quantized: QuantizedGraph) -> str:
    """Emit and verify; the first mismatch, or ""."""
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        try:
            verification = TARGET.emit(quantized, Path(folder)).verify()
        except AdvisorError as error:
            return _first_line(error)
    found = [f"{m.name}: expected {m.expected}, found {m.found}" for m in verification.mismatches]
    return "" if verification.ok else (found or ["layers do not match"])[0]


def _first_line(error: AdvisorError) -> str:
    return " ".join(str(error).split())[:400]
