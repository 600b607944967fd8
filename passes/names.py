"""Stable names: the same layer is called the same in every export of the same model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Set
from typing import Any

from torch.fx import GraphModule, Node

from advisor.passes.fx import clone, finish, innermost_module, operator_name, stamp
from advisor.passes.graph import PASS_KEY
from advisor.passes.recurrent import WEIGHTS_AT


def name_nodes(module: GraphModule) -> GraphModule:
    """Give every node its stable name in ``meta["custom"]``.

    Given: nodes with their module stack. Result: an input keeps its name, a weight its path. A
    call is named by the module that owns its weight, of a recurrent network with its layer and
    direction ("l0", "l0_reverse"); inside one of torch.nn's own modules that is a single
    operator, by that module; anywhere else by ``path.operator``. The k-th node of a name gets
    ``#k`` (k > 1).
    """
    module = clone(module)
    operators: dict[str, set[str]] = defaultdict(set)
    for node in module.graph.nodes:
        if node.op == "call_function":
            operators[innermost_module(node)[0]].add(operator_name(node))
    seen: Counter[str] = Counter()
    for node in module.graph.nodes:
        if node.op == "output":
            continue
        base = _base_name(node, operators)
        seen[base] += 1
        name = base if seen[base] == 1 else f"{base}#{seen[base]}"
        custom: dict[str, Any] = node.meta.get("custom") or {}
        stamp(node, made_by=custom.get(PASS_KEY, "capture"), name=name)
    return finish(module)


def _base_name(node: Node, operators: Mapping[str, Set[str]]) -> str:
    if node.op in ("placeholder", "get_attr"):
        return str(node.target)
    path, kind = innermost_module(node)
    if not path:
        return operator_name(node)
    if node.target in WEIGHTS_AT:
        return _recurrent_name(node)
    is_torchs = kind.startswith("torch.nn.modules.")
    for owner in _weight_owners(node):
        # nn.MultiheadAttention calls its out_proj's weight, not its out_proj.
        if owner == path or (is_torchs and owner.startswith(f"{path}.")):
            return owner
    if is_torchs and len(operators[path]) == 1:
        return path
    return f"{path}.{operator_name(node)}"


def _recurrent_name(node: Node) -> str:
    """One layer and direction of a network whose weights are ``path.weight_ih_l0_reverse``."""
    weight: Any = node.args[WEIGHTS_AT[node.target][0]]
    path, _, leaf = str(weight.target).rpartition(".")
    part = leaf.removeprefix("weight_ih_") if leaf.startswith("weight_ih_") else leaf
    return f"{path}.{part}".lstrip(".")


def _weight_owners(node: Node) -> list[str]:
    """Paths of the modules whose weights a call reads.

    A factor or shift that was folded (what a batch norm has become) counts for none: several
    calls of one module may read such. A parametrized weight counts for the module it belongs to.
    """
    weights = [str(source.target) for source in node.all_input_nodes if source.op == "get_attr"]
    if operator_name(node) in ("mul", "add"):
        weights = [weight for weight in weights if "_folded" not in weight.rpartition(".")[2]]
    return [weight.rpartition(".")[0].partition(".parametrizations")[0] for weight in weights]
