"""What every layer could do: the schemes its runtime and our rounding both support."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from advisor.formats import SCHEMES, Scheme, scheme_named
from advisor.passes.fx import attribute
from advisor.passes.graph import Graph, Layer
from advisor.passes.group import Group, class_tensors
from advisor.passes.regions import Regions, find_regions
from advisor.passes.rounding import IMPLEMENTED_DTYPES, NEEDS_DATA, algorithms_for
from advisor.search.problem import Candidate
from advisor.targets.capability import Capability, DynamicRules, Support

FLOAT16_MAX = 65504.0

SIMULATED_ACTIVATIONS: Final = ("w8a8", "a8a8", "fp8", "a8a8-fp8")
"""Schemes with static activations that the passes know how to compute."""

DYNAMIC_OPS: Final = frozenset({"linear", "lstm"})
"""Operators whose input may be quantized at run time: its rows are what the rules speak of. The
hidden state of an LSTM is then quantized too. Convolutions can be where the rules speak of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """candidates: by group name, never empty. refused: by layer name, scheme to reason."""

    candidates: Mapping[str, tuple[Candidate, ...]]
    refused: Mapping[str, Mapping[str, str]]


def find_candidates(
    graph: Graph,
    groups: Sequence[Group],
    capability: Capability,
    *,
    platform: Mapping[str, str],
    schemes: Sequence[str] | None = None,
) -> Space:
    """All (scheme, algorithm) pairs of every group, and why the others are out.

    schemes: restrict to these names; float32 always stays, so that every layer has at least one.
    platform: the profile's OS or compute capability.
    """
    layers = {layer.name: layer for layer in graph.layers}
    candidates: dict[str, tuple[Candidate, ...]] = {}
    refused: dict[str, dict[str, str]] = {layer.name: {} for layer in graph.layers}
    for group in groups:
        found: list[Candidate] = []
        members = [layers[name] for name in group.layers]
        weighs = {layer.weight for layer in members} == {
            layer.weight for layer in members if reads_channels(layer)
        }
        for scheme in (SCHEMES[name] for name in SCHEMES if name in capability.schemes):
            if schemes is not None and scheme.name not in schemes and scheme.name != "fp32":
                continue
            verdicts = {
                name: can_take(graph, layers[name], scheme, capability, platform)
                for name in group.layers
            }
            for name, verdict in verdicts.items():
                if not verdict.ok:
                    refused[name][scheme.name] = verdict.reason
            if all(verdict.ok for verdict in verdicts.values()):
                found.extend(_algorithms(scheme, weighs=weighs))
        candidates[group.name] = tuple(found) or (Candidate(scheme="fp32", algorithm="none"),)
    return Space(candidates=candidates, refused=refused)


def keep_to(space: Space, groups: Sequence[Group], schemes: Sequence[str], device: str) -> Space:
    """The space with only what a device runs; a group that can take none of it stays in float32.

    schemes: what it runs; none where the runtime alone decides. device: its name, for reasons.
    """
    if not schemes:
        return space
    candidates: dict[str, tuple[Candidate, ...]] = {}
    refused = {name: dict(reasons) for name, reasons in space.refused.items()}
    for group in groups:
        options = space.candidates[group.name]
        kept = tuple(option for option in options if option.scheme in schemes)
        candidates[group.name] = kept or (Candidate(scheme="fp32", algorithm="none"),)
        possible = {option.scheme for option in candidates[group.name]}
        for name in group.layers:
            for option in options:
                if option.scheme not in possible:
                    reason = f"{device} itself runs only {', '.join(schemes)}"
                    refused[name].setdefault(option.scheme, reason)
    return Space(candidates=candidates, refused=refused)


def can_take(
    graph: Graph,
    layer: Layer,
    scheme: Scheme,
    capability: Capability,
    platform: Mapping[str, str],
) -> Support:
    """Whether the layer can run under the scheme on this runtime and with our rounding."""
    if layer.frozen and scheme.name != "fp32":
        return Support(ok=False, reason=layer.frozen)
    if layer.is_product and scheme.weight.dtype != "float32":
        return Support(ok=False, reason=f"a product has no weight to be {scheme.weight.dtype}")
    support = capability.support(layer, scheme, platform)
    alone = capability.taken(layer, scheme)
    if alone != scheme and any(
        other.weight == layer.weight and capability.support(other, scheme, platform).ok
        for other in graph.layers
    ):
        return can_take(graph, layer, alone, capability, platform)
    if not support.ok:
        return support
    if not capability.schemes[scheme.name].tied and _is_tied(graph, layer):
        reason = f"{capability.title} expands a weight under {scheme.name} that several layers read"
        return Support(ok=False, reason=reason)
    if scheme.weight.dtype not in IMPLEMENTED_DTYPES:
        return Support(ok=False, reason=f"weights as {scheme.weight.dtype} cannot be made yet")
    if scheme.is_static and scheme.name not in SIMULATED_ACTIVATIONS:
        return Support(ok=False, reason=f"{scheme.name} activations cannot be simulated yet")
    if scheme.is_dynamic and not _has_dynamic(layer, capability.dynamic[scheme.name]):
        reason = f"dynamic activations of {layer.op} cannot be simulated yet"
        return Support(ok=False, reason=reason)
    if scheme.weight.dtype == "float16":
        weight: torch.Tensor = attribute(graph.module, layer.weight)
        largest = float(weight.abs().max())
        if largest > FLOAT16_MAX:
            return Support(ok=False, reason=f"weight {largest:.3g} overflows float16 (65504)")
    return Support(ok=True)


def _is_tied(graph: Graph, layer: Layer) -> bool:
    """Whether another layer, or another call of this one, reads the same weight."""
    return sum(other.weight == layer.weight for other in graph.layers) > 1


def _has_dynamic(layer: Layer, rules: DynamicRules) -> bool:
    """Whether it is known what shares a scale in the layer's input."""
    return layer.op in DYNAMIC_OPS or (layer.op == "conv2d" and bool(rules.convolution))


def regions_of(graph: Graph, capability: Capability) -> Regions:
    """The tensors that some plan for the runtime quantizes in this graph."""
    static = [scheme for name in SIMULATED_ACTIVATIONS if (scheme := scheme_named(name)).is_static]
    capable = {
        layer.name
        for layer in graph.layers
        if any(capability.support(layer, scheme).ok for scheme in static)
    }
    classes = class_tensors(graph, capability)
    fixed = {name for each in classes if each.fixed is not None for name in each.tensors}
    return find_regions(graph, capability.static, capable, fixed)


def reads_channels(layer: Layer) -> bool:
    """Whether a layer reads numbers, of which some channels may matter more; not token ids."""
    return layer.op != "embedding"


def _algorithms(scheme: Scheme, *, weighs: bool) -> list[Candidate]:
    """weighs: whether errors can be weighed by what the weights meet."""
    if scheme.weight.is_float:
        return [Candidate(scheme=scheme.name, algorithm="none")]
    names = [name for name in algorithms_for(scheme.weight) if weighs or name not in NEEDS_DATA]
    return [Candidate(scheme=scheme.name, algorithm=name) for name in names]
