"""Move some layers of a finished plan to another scheme, everything else unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch

from advisor.assemble import build_problem
from advisor.binding import (
    Binding,
    assignment_of,
    bind,
    binding_of,
    content_digest,
    factors_of,
    params_of,
    plan_tensors,
    planned_graph,
    stored_table,
)
from advisor.breakdown import break_down, break_down_energy, break_down_memory
from advisor.budget import FIELDS, Budget, format_amount
from advisor.decide import modelled
from advisor.devicenotes import with_warnings
from advisor.errors import InfeasibleError, PlanError, ProfileError, UnsupportedError
from advisor.filesize import predict_file_bytes
from advisor.formats import scheme_named
from advisor.partitions import count_partitions
from advisor.passes.candidates import find_candidates, regions_of
from advisor.passes.fx import attribute
from advisor.passes.graph import Graph, WeightTable
from advisor.passes.group import group_layers
from advisor.passes.quantize import fit_biases
from advisor.passes.rounding import NEEDS_DATA, round_weight
from advisor.pins import resolve_pins
from advisor.plan import LayerDecision, Metrics, Option, Plan, Quantity, latencies
from advisor.profiles.costparts import EnergyParts, MemoryParts
from advisor.profiles.loader import load_profile
from advisor.profiles.schema import Profile
from advisor.profiles.timeparts import TimeParts
from advisor.search.milp import value_of
from advisor.search.problem import Candidate, Evaluation, evaluate
from advisor.setting import Deployment, make_setting
from advisor.targets.registry import capability_named

BOUNDARIES_LEFT: Final = "; conversions between schemes as before the pin"


def pin_layers(plan: Plan, pattern: str, scheme: str) -> Plan:
    """See ``Plan.pin``."""
    binding = binding_of(plan)
    pinned = resolve_pins(binding.graph, {pattern: scheme})
    groups = {d.group: [e for e in plan.layers if e.group == d.group] for d in plan.layers}
    touched = {d.group for d in plan.layers if d.name in pinned}
    moved = {
        decision.name: decision
        for group in sorted(touched)
        for decision in _move(groups[group], scheme, pattern)
    }
    layers = tuple(moved.get(decision.name, decision) for decision in plan.layers)
    graph = planned_graph(plan, binding)
    costs = _evaluate(plan, graph, layers)
    _check_budget(plan, costs.evaluation)
    static = {d.name for d in layers if scheme_named(d.scheme).is_static}
    capability = capability_named(plan.runtime)
    quantized = regions_of(binding.graph, capability).quantized(static)
    tensors = tuple(replace(tensor, quantized=tensor.name in quantized) for tensor in plan.tensors)
    weights = fit_biases(
        graph,
        assignment_of(layers),
        _weights(plan, graph, binding.tensors, layers),
        params_of(plan),
        capability.static,
    )
    stored, tree = plan_tensors(
        binding.graph, weights, _biases(binding, layers, plan), factors_of(binding.tensors)
    )
    changed = replace(
        plan,
        layers=layers,
        tensors=tensors,
        predicted=_predicted(plan, layers, costs),
        measured=Metrics(),
        drop=None,
        breakdown=costs.breakdown,
        memory_parts=costs.memory_parts,
        energy_parts=costs.energy_parts,
        outcome=f"{plan.outcome}; then {pattern!r} was pinned to {scheme}, which was not measured",
        notes=with_warnings(plan.notes, layers, capability, _profile_of(plan).units, plan.platform),
        pins={**plan.pins, pattern: scheme},
        input_tree=tree,
        tensors_sha256=content_digest(stored),
    )
    return bind(changed, binding.graph, stored)


def _move(group: list[LayerDecision], scheme: str, pattern: str) -> list[LayerDecision]:
    """A group's layers under one scheme and one algorithm, the better of those it has."""
    reason = f"pinned to {scheme} by {pattern!r}"
    if group[0].scheme == scheme:
        return [replace(decision, reason=reason) for decision in group]
    options = [_options_of(decision, scheme) for decision in group]
    shared = [a for a in options[0] if all(a in other for other in options)]
    shared = [a for a in shared if a not in NEEDS_DATA] or shared  # there is none any more
    best = min(shared, key=lambda algorithm: sum(other[algorithm].divergence for other in options))
    return [
        replace(
            decision,
            scheme=scheme,
            algorithm=best,
            size_bytes=option.size_bytes if decision.size_bytes else 0,
            latency_s=option.latency_s,
            bound=option.bound or decision.bound,
            divergence=option.divergence,
            error=None,
            reason=reason,
        )
        for decision, option in zip(group, (other[best] for other in options), strict=True)
    ]


def _options_of(decision: LayerDecision, scheme: str) -> dict[str, Option]:
    """What the layer could be under a scheme, by algorithm."""
    named = [option for option in decision.options if option.scheme == scheme]
    possible = {option.algorithm: option for option in named if not option.reason}
    if not possible:
        reason = named[0].reason if named else f"{scheme} was not among the plan's candidates"
        schemes = dict.fromkeys(o.scheme for o in decision.options if not o.reason)
        raise UnsupportedError(
            f"layer {decision.name} cannot be pinned to {scheme}: {reason}; "
            f"possible here: {', '.join(schemes)}"
        )
    return possible


@dataclass(frozen=True, slots=True, kw_only=True)
class _Costs:
    """What the layers cost, into how many partitions they split a delegate's share, and what the
    seconds are spent on, with the parts of memory and energy."""

    evaluation: Evaluation
    file_bytes: float | None
    partitions: int | None
    breakdown: TimeParts
    memory_parts: MemoryParts
    energy_parts: EnergyParts | None


def _evaluate(plan: Plan, graph: Graph, layers: tuple[LayerDecision, ...]) -> _Costs:
    """The costs of a plan with these layers."""
    capability, profile = capability_named(plan.runtime), _profile_of(plan)
    groups = group_layers(graph, capability)
    chosen = {d.name: Candidate(scheme=d.scheme, algorithm=d.algorithm) for d in layers}
    space = find_candidates(graph, groups, capability, platform=profile.platform)
    space = replace(space, candidates={group.name: (chosen[group.layers[0]],) for group in groups})
    deployment = Deployment(
        profile=profile,
        capability=capability,
        batch=plan.batch,
        sequence=plan.sequence,
        threads=plan.threads,
        context=plan.context,
    )
    setting = make_setting(graph, groups, space, deployment)
    choice = tuple(0 for _ in groups)
    problem = build_problem(setting)
    found = evaluate(problem, choice)
    breakdown = break_down(setting, problem, choice, found)
    old = plan.predicted.latency_s
    if plan.provenance.costs_digest and old is not None:
        # Measured times are not made again; those of the layers are in the plan.
        change = sum(d.latency_s for d in layers) - sum(d.latency_s for d in plan.layers)
        found = replace(found, latency_s=max(old.value + change, 0.0))
        breakdown = TimeParts(timed_s=found.latency_s)
    return _Costs(
        evaluation=found,
        file_bytes=predict_file_bytes(setting, choice, found.size_bytes),
        partitions=count_partitions(setting, choice),
        breakdown=breakdown,
        memory_parts=break_down_memory(setting, problem, choice, found),
        energy_parts=break_down_energy(setting, choice),
    )


def _profile_of(plan: Plan) -> Profile:
    """The profile that the plan was made with.

    Raises:
        PlanError: it cannot be found by its name (it was a file), or has changed since.
    """
    try:
        profile = load_profile(plan.target, plan.runtime)
    except ProfileError as error:
        raise PlanError(
            f"the profile {plan.target!r} of the plan is not one that can be found by name, so the "
            "pin cannot be costed; plan again with advise(..., target=<its TOML file>, pin=...)"
        ) from error
    if profile.digest != plan.provenance.profile_digest:
        raise PlanError(
            f"the profile {plan.target!r} has changed since the plan was made; "
            f"plan again with advise(..., target={plan.target!r}, pin=...)"
        )
    return profile


def _check_budget(plan: Plan, evaluation: Evaluation) -> None:
    budget = Budget.parse(plan.budget).resolved(latencies(plan.baselines))
    broken = [
        f"{name} {format_amount(quantity, value_of(evaluation, quantity))} "
        f"(limit {format_amount(quantity, limit)})"
        for name, quantity in FIELDS.items()
        if (limit := budget.bounds().get(quantity)) is not None
        and value_of(evaluation, quantity) > limit
    ]
    if broken:
        raise InfeasibleError(
            f"with that pin the plan breaks its budget: {', '.join(broken)}; plan again around "
            "the pin with advise(..., pin=...), or allow more"
        )


def _predicted(plan: Plan, layers: tuple[LayerDecision, ...], costs: _Costs) -> Metrics:
    before = sum(decision.divergence for decision in plan.layers)
    after = sum(decision.divergence for decision in layers)
    old = plan.predicted.divergence
    value = max((old.value if old else before) - before + after, 0.0)
    how = plan.predicted.latency_s.how if plan.predicted.latency_s else ""
    if plan.provenance.costs_digest:
        how += BOUNDARIES_LEFT
    return replace(
        modelled(
            costs.evaluation,
            plan.target,
            how,
            file_bytes=costs.file_bytes,
            partitions=costs.partitions,
        ),
        divergence=Quantity(
            value=value, origin="modelled", how="sensitivity probe, interactions left out"
        ),
    )


def _weights(
    plan: Plan,
    graph: Graph,
    stored: Mapping[str, torch.Tensor],
    layers: tuple[LayerDecision, ...],
) -> dict[str, WeightTable]:
    """The plan's tables where nothing moved, new ones where it did."""
    before = {d.name: d for d in plan.layers}
    by_name = {layer.name: layer for layer in graph.layers}
    tables: dict[str, WeightTable] = {}
    for decision in layers:
        fmt = by_name[decision.name].weight_format(scheme_named(decision.scheme))
        if fmt.dtype == "float32" or decision.weight in tables:
            continue
        old = before[decision.name]
        kept = (old.scheme, old.algorithm) == (decision.scheme, decision.algorithm)
        if kept and f"{decision.weight}/values" in stored:
            tables[decision.weight] = stored_table(decision.weight, stored)
        else:
            weight = attribute(graph.module, decision.weight)
            scales = capability_named(plan.runtime).scale_rounding
            tables[decision.weight] = round_weight(weight, fmt, decision.algorithm, scales)
    return tables


def _biases(
    binding: Binding, layers: tuple[LayerDecision, ...], plan: Plan
) -> dict[str, torch.Tensor]:
    """Corrected biases of layers that did not move; a moved one goes back to its own bias."""
    before = {d.name: (d.scheme, d.algorithm) for d in plan.layers}
    stay = {d.name for d in layers if before[d.name] == (d.scheme, d.algorithm)}
    return {
        name.removesuffix("/bias"): tensor
        for name, tensor in binding.tensors.items()
        if name.endswith("/bias") and name.removesuffix("/bias") in stay
    }
