"""Pins: layers that the user fixes to a scheme, by name glob or by operator type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

from advisor.errors import UnsupportedError, UsageError
from advisor.formats import scheme_named
from advisor.passes.candidates import Space
from advisor.passes.graph import Graph, Layer
from advisor.passes.group import Group
from advisor.targets.capability import Capability

OP_PREFIX = "op:"


def matches(pattern: str, layer: Layer) -> bool:
    """Whether a glob such as "*.head", or "op:embedding", means the layer."""
    if pattern.startswith(OP_PREFIX):
        return fnmatchcase(layer.op, pattern.removeprefix(OP_PREFIX))
    return fnmatchcase(layer.name, pattern)


def resolve_pins(graph: Graph, pins: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Layer name to (scheme, pattern); a later pin wins over an earlier one.

    Raises:
        UsageError: an unknown scheme, or a pattern that matches no layer.
    """
    # Typed callers pass a mapping; a list or a string is a usual slip all the same.
    if not isinstance(pins, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(
            f"pin={pins!r}: expected a mapping of layers to schemes, such as "
            '{"*.head": "fp16", "op:embedding": "fp32"}'
        )
    found: dict[str, tuple[str, str]] = {}
    for pattern, scheme in pins.items():
        scheme_named(scheme)
        hits = [layer.name for layer in graph.layers if matches(pattern, layer)]
        if not hits:
            names = [layer.name for layer in graph.layers]
            ops = sorted({f"{OP_PREFIX}{layer.op}" for layer in graph.layers})
            close = get_close_matches(pattern, [*names, *ops], n=3) or names[:5]
            raise UsageError(
                f"pin {pattern!r} matches none of {len(names)} layers; near: {', '.join(close)}; "
                f"operator types: {', '.join(ops)}"
            )
        found.update(dict.fromkeys(hits, (scheme, pattern)))
    return found


def apply_pins(
    space: Space,
    groups: tuple[Group, ...],
    pinned: Mapping[str, tuple[str, str]],
    capability: Capability,
) -> Space:
    """The space with every pinned group left with its scheme only.

    Raises:
        UnsupportedError: the runtime cannot run the layer so; the reason and what it can.
        UsageError: two layers of one group are pinned to different schemes.
    """
    narrowed = dict(space.candidates)
    for group in groups:
        wanted = {pinned[name][0]: name for name in group.layers if name in pinned}
        if not wanted:
            continue
        if len(wanted) > 1:
            raise UsageError(
                f"layers {', '.join(wanted.values())} share a weight or a fused operator and "
                f"cannot be pinned to different schemes ({', '.join(wanted)}); pin them alike"
            )
        ((scheme, name),) = wanted.items()
        kept = tuple(c for c in space.candidates[group.name] if c.scheme == scheme)
        if not kept:
            possible = dict.fromkeys(c.scheme for c in space.candidates[group.name])
            reason = _refusal(space, group, name, scheme) or _lacking(scheme, capability)
            raise UnsupportedError(
                f"layer {name} cannot be pinned to {scheme}: {reason}; "
                f"possible here: {', '.join(possible)}"
            )
        narrowed[group.name] = kept
    return replace(space, candidates=narrowed)


def _refusal(space: Space, group: Group, name: str, scheme: str) -> str:
    """Why the layer cannot take the scheme, or another that must take it too; "" where none."""
    for other in sorted(group.layers, key=lambda each: each != name):
        if scheme in space.refused[other]:
            whose = "" if other == name else f"{other}, which must take it too: "
            return f"{whose}{space.refused[other][scheme]}"
    return ""


def _lacking(scheme: str, capability: Capability) -> str:
    """Why a scheme was considered for no layer."""
    if scheme in capability.schemes:
        return f"{scheme} is not among the schemes asked for"
    return capability.refused.get(scheme, f"{capability.title} has no {scheme}")
