"""Read ONNX Runtime's profile, and say which layer or tensor every executed node belongs to."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from advisor.passes.graph import QuantizedGraph
from advisor.targets.base import REST, Part
from advisor.targets.statistics import low_quantile

if TYPE_CHECKING:
    import onnx_ir as ir

_KERNEL: Final = "_kernel_time"
_AROUND: Final = re.compile(r"^(?:fused )?(.*?)(?:_token_\d+|_nchwc|/\w*Fusion/?|/duplicated)*$")
"""What ONNX Runtime's graph transformers put around the name of a node they replace."""

_NUMBERED: Final = re.compile(r"/\d+$")
_BOUNDARIES: Final = ("quantize", "dequantize")
_ABSORBED: Final = frozenset(
    {"Add", "Clip", "HardSigmoid", "LeakyRelu", "Relu", "Reshape", "Sigmoid", "Tanh"}
)
"""Operators that ONNX Runtime fuses into the product before them; the result has their name."""


def read_nodes(profile: Path, runs: int) -> dict[tuple[str, str], float]:
    """Seconds of one forward by (node, operator), the low quantile of ``runs`` runs.

    The first run, which allocates, is left out when there are others.
    """
    events = cast("list[dict[str, Any]]", json.loads(profile.read_text(encoding="utf-8")))
    durations: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for event in events:
        name = str(event["name"])
        if event["cat"] == "Node" and name.endswith(_KERNEL):
            args = event["args"]
            key = (str(args["node_index"]), name.removesuffix(_KERNEL), str(args["op_name"]))
            durations[key].append(float(event["dur"]) * 1e-6)
    found: dict[tuple[str, str], float] = defaultdict(float)
    for (_, name, operator), seconds in durations.items():
        per_run = len(seconds) // runs  # a node inside a loop runs several times
        kept = seconds[per_run:] if len(seconds) > per_run else seconds
        found[name, operator] += low_quantile(kept) * max(per_run, 1)
    return dict(found)


def parts_of(
    nodes: Mapping[tuple[str, str], float], owners: Mapping[str, Part]
) -> dict[Part, float]:
    """Seconds by part, from seconds by (node, operator)."""
    parts: dict[Part, float] = defaultdict(float)
    for (name, operator), seconds in nodes.items():
        parts[_owner(name, operator, owners)] += seconds
    return dict(parts)


def owners_of(model: ir.Model, graph: QuantizedGraph) -> dict[str, Part]:
    """The part that a node of the optimised graph belongs to, by its name without decoration.

    A layer's main node has the layer's name, its helpers are called "layer/role", quantizers
    "tensor/quantize". A fused product goes by the name, or by the name of the output, of the last
    operator fused into it, so those names stand for the layer too, for products.
    """
    owners: dict[str, Part] = {}
    layers = {layer.name for layer in graph.float_graph.layers}
    for node in model.graph:
        name = _NUMBERED.sub("", str(node.name))
        base, _, role = name.rpartition("/")
        if role in _BOUNDARIES and base in graph.activations:
            owners[str(node.name)] = (role, base)
        elif name in layers:
            owners[str(node.name)] = ("layer", name)
            _follow(node, name, owners)
        elif base in layers:
            owners[str(node.name)] = ("layer", base)
    return owners


def _follow(node: ir.Node, layer: str, owners: dict[str, Part]) -> None:
    """Names under which ``node`` may go once the operators behind it are fused into it."""
    for _ in range(4):  # bias, residual, activation, fence
        value = node.outputs[0]
        owners.setdefault(f"{value.name}\0", ("layer", layer))
        readers = list(value.consumers())
        if len(readers) != 1 or readers[0].op_type not in _ABSORBED:
            return
        node = readers[0]
        owners.setdefault(f"{node.name}\0", ("layer", layer))


def _owner(name: str, operator: str, owners: Mapping[str, Part]) -> Part:
    match = _AROUND.match(name)
    base = match.group(1) if match else name
    if name in owners or base in owners:
        return owners.get(name, owners.get(base, REST))
    if operator in _ABSORBED or operator in ("QuantizeLinear", "DequantizeLinear", "Transpose"):
        return REST
    return owners.get(f"{base}\0", REST)
