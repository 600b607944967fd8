"""What a legal graph is. Runs after every pass in the tests, and once after capture."""

from __future__ import annotations

from collections import Counter

import torch
from torch.fx import GraphModule, Node

from advisor.errors import CaptureError
from advisor.passes.fx import attribute, operator_name
from advisor.passes.graph import NAME_KEY, Graph, name_of


def verify(graph: Graph) -> None:
    """Check a normalised graph against the rules below.

    1. Every call is of an operator overload (or ``getitem`` or symbolic-size arithmetic).
    2. No operator mutates its arguments.
    3. Every ``get_attr`` resolves to a tensor.
    4. Every node but the output has a stable name, and no two have the same.
    5. Every layer names a node, and a floating-point weight of the shape it states or, for a
       product, two operands.

    Raises:
        CaptureError: lists every rule that is broken, and where.
    """
    problems = [
        *verify_nodes(graph.module),
        *_verify_names(graph.module),
        *_verify_layers(graph),
    ]
    if problems:
        listing = "\n  ".join(problems)
        raise CaptureError(f"the captured graph is not legal:\n  {listing}")


def verify_nodes(module: GraphModule) -> list[str]:
    """Rules 1 to 3, which hold after every single pass."""
    problems: list[str] = []
    for node in module.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node.op == "get_attr":
            if not isinstance(attribute(module, str(node.target)), torch.Tensor):
                problems.append(f"{node.name}: attribute {node.target} is no tensor")
        elif node.op != "call_function":
            problems.append(f"{node.name}: {node.op} is not a plain operator call")
        elif (schema := getattr(node.target, "_schema", None)) is not None:
            if schema.is_mutable:
                problems.append(f"{node.name}: {schema.name} changes its arguments")
        elif not _is_scalar_call(node):
            problems.append(f"{node.name}: {node.target} is no operator overload")
    return problems


def _is_scalar_call(node: Node) -> bool:
    """``getitem``, or arithmetic on symbolic sizes."""
    home = str(getattr(node.target, "__module__", "")).partition(".")[0]
    return home in ("_operator", "math") or operator_name(node).startswith(("sym_", "_sym_"))


def _verify_names(module: GraphModule) -> list[str]:
    nodes = [node for node in module.graph.nodes if node.op != "output"]
    nameless = [node.name for node in nodes if NAME_KEY not in (node.meta.get("custom") or {})]
    counts = Counter(name_of(node) for node in nodes if node.op == "call_function")
    return [f"{name}: node without a stable name" for name in nameless] + [
        f"{name}: {count} nodes have this name" for name, count in counts.items() if count > 1
    ]


def _verify_layers(graph: Graph) -> list[str]:
    problems: list[str] = []
    nodes = [node for node in graph.module.graph.nodes if node.op != "get_attr"]
    known = {name_of(node) for node in nodes}
    names = {name_of(node) for node in nodes if node.op == "call_function"}
    for layer in graph.layers:
        if layer.output not in names:
            problems.append(f"{layer.name}: no node computes it")
        if layer.is_product:
            missing = {layer.input, layer.other} - known
            problems += [f"{layer.name}: no node computes its operand {each}" for each in missing]
            continue
        weight = attribute(graph.module, layer.weight)
        if tuple(weight.shape) != layer.weight_shape or not weight.is_floating_point():
            problems.append(f"{layer.name}: weight {layer.weight} is {tuple(weight.shape)}")
    return problems
