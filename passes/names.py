"""Stable names: the same layer is called the same in every export of the same model."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.fx import GraphModule, Node

from advisor.passes.fx import clone, finish, stamp
from advisor.passes.graph import NAME_KEY


def name_nodes(module: GraphModule) -> GraphModule:
    """Give every node its stable name in ``meta["custom"]``.

    Given: nodes with their module stack. Result: an input keeps its name, a weight its path; a
    call is named by the module it stands in when that module owns the weight or is a leaf of
    torch.nn, and by ``path.operator`` otherwise; the k-th node of a name gets ``#k`` (k > 1).
    """
    module = clone(module)
    seen: Counter[str] = Counter()
    for node in module.graph.nodes:
        if node.op == "output":
            continue
        base = _base_name(node)
        seen[base] += 1
        name = base if seen[base] == 1 else f"{base}#{seen[base]}"
        made_by = (node.meta.get("custom") or {}).get("advisor_pass", "capture")
        stamp(node, made_by=made_by, name=name)
    return finish(module)


def _base_name(node: Node) -> str:
    if node.op in ("placeholder", "get_attr"):
        return str(node.target)
    path, is_leaf = _innermost(node)
    weights = [arg for arg in node.args if isinstance(arg, Node) and arg.op == "get_attr"]
    owners = {str(weight.target).rpartition(".")[0] for weight in weights}
    if path and (is_leaf or path in owners):
        return path
    operator = getattr(node.target, "_schema", None)
    short = operator.name.split("::")[-1] if operator is not None else node.name
    return f"{path}.{short}" if path else short


def _innermost(node: Node) -> tuple[str, bool]:
    """Path of the module that made the call, and whether it is one of torch.nn's own."""
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "", False
    path, kind = list(stack.values())[-1]
    kind_name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return clean_path(str(path)), kind_name.startswith("torch.nn.modules.")


def clean_path(path: str) -> str:
    """A module path as a user writes it: without the ``L['self']`` of strict export."""
    path = path.removeprefix("L['self'].").removeprefix("L['self']")
    return path if path.isidentifier() or "." in path or path.isalnum() else path.strip("._")


__all__ = ["NAME_KEY", "clean_path", "name_nodes"]
