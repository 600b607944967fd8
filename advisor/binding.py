"""Ties a Plan, which is plain data, to the model and the tensors it speaks of.

The tie lives outside the plan, in a table keyed weakly by the plan object, so that plans stay
small, comparable and printable, and a dropped plan releases its model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree

from advisor.errors import PlanError
from advisor.passes.candidates import regions_of
from advisor.passes.capture import capture
from advisor.passes.digest import bytes_of
from advisor.passes.equalise import equalise
from advisor.passes.fx import attribute
from advisor.passes.graph import (
    ActivationParams,
    Graph,
    LayerAssignment,
    QuantizedGraph,
    WeightTable,
    name_of,
)
from advisor.passes.quantize import quantize
from advisor.plan import LayerDecision, Plan
from advisor.setting import graph_for
from advisor.targets.registry import capability_named

CONSTANTS = (type(None), bool, int, float, str)


@dataclass(slots=True, kw_only=True)
class Binding:
    """What a plan needs at hand to be applied, compiled or pinned.

    Never the plan itself: it is the weak key that the binding is found by, and a value that held
    its key would keep both alive for ever. quantized: the plan applied to the graph, once built.
    """

    graph: Graph
    tensors: dict[str, torch.Tensor]
    quantized: QuantizedGraph | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    path: Path
    model: Any


_BINDINGS: WeakKeyDictionary[Plan, Binding | _Files] = WeakKeyDictionary()


def bind(plan: Plan, graph: Graph, tensors: dict[str, torch.Tensor]) -> Plan:
    """Tie a plan to the graph it was made from and its tensors; returns the plan."""
    _BINDINGS[plan] = Binding(graph=graph, tensors=tensors)
    return plan


def register_files(plan: Plan, tensors_path: Path, model: Any = None) -> None:
    """Remember where a loaded plan's tensors are; with a model, check that it is the plan's.

    Raises:
        PlanError: ``model`` is another model, or the tensors are missing or altered.
    """
    _BINDINGS[plan] = _Files(path=tensors_path, model=model)
    if model is not None:
        binding_of(plan)


def tensors_of(plan: Plan) -> dict[str, torch.Tensor]:
    """The plan's tensors, for which its model is not needed.

    Raises:
        PlanError: the plan has none at hand, or they are missing or altered.
    """
    known = _BINDINGS.get(plan)
    if isinstance(known, _Files):
        from advisor.planfile import read_tensors

        return read_tensors(plan, known.path)
    return dict(binding_of(plan).tensors)


def binding_of(plan: Plan) -> Binding:
    """The model and tensors of a plan, loaded when needed.

    Raises:
        PlanError: no model is known, it is another model, or the tensors are missing or altered.
    """
    known = _BINDINGS.get(plan)
    if isinstance(known, Binding):
        return known
    if known is None:
        raise PlanError(
            "this plan is tied to no model (it was made by copying or parsing); "
            "save it and use Plan.load(path, model=...)"
        )
    from advisor.planfile import read_tensors

    model = known.model if known.model is not None else _load_recorded(plan)
    tensors = read_tensors(plan, known.path)
    args, kwargs = example_from_tree(plan.input_tree, tensors)
    graph = graph_for(capture(model, args, kwargs), capability_named(plan.runtime))
    found = fingerprint(graph)
    if found != plan.fingerprint:
        raise PlanError(
            f"the plan was made for another model (fingerprint {plan.fingerprint[:12]}, this model "
            f"has {found[:12]}): weights or structure differ; load the weights the plan was made "
            "with, or plan this model with advise()"
        )
    bound = Binding(graph=graph, tensors=tensors)
    _BINDINGS[plan] = bound
    return bound


def quantized_of(plan: Plan) -> QuantizedGraph:
    """The plan applied to its model; built once.

    Float weights and biases are the user's own tensors, not copies, so they are held against the
    fingerprint every time.

    Raises:
        PlanError: as ``binding_of``; or the model was changed after the plan was made.
    """
    bound = binding_of(plan)
    found = fingerprint(bound.graph)
    if found != plan.fingerprint:
        raise PlanError(
            f"the model's weights were changed after the plan was made (fingerprint then "
            f"{plan.fingerprint[:12]}, now {found[:12]}); plan it again with advise(), or load the "
            "old weights and use Plan.load(path, model=...)"
        )
    if bound.quantized is None:
        bound.quantized = _quantize(plan, planned_graph(plan, bound), bound.tensors)
    return bound.quantized


def planned_graph(plan: Plan, bound: Binding) -> Graph:
    """The float graph that the plan's integers stand for: the model's, equalised if so planned.

    Raises:
        PlanError: the plan and its tensors disagree, or its factors do not fit the model.
    """
    factors = factors_of(bound.tensors)
    if bool(factors) != plan.equalise:
        raise PlanError(
            f"plan.json says equalise={plan.equalise}, and plan.safetensors holds factors of "
            f"{len(factors)} layers; copy both files from the same folder"
        )
    return equalise(bound.graph, factors) if factors else bound.graph


def factors_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The factors that the graph is equalised by, from what plan.safetensors holds."""
    return {
        name.removesuffix("/factors"): tensor
        for name, tensor in tensors.items()
        if name.endswith("/factors")
    }


def fingerprint(graph: Graph) -> str:
    """SHA-256 of the normalised graph (operators, names, edges) and of every weight."""
    digest = hashlib.sha256()
    for node in graph.module.graph.nodes:
        arguments = [_spell(node.args), _spell(node.kwargs)]
        call = [node.op, name_of(node), str(node.target), *arguments]
        digest.update(json.dumps(call, sort_keys=True).encode())
    for target in sorted({str(n.target) for n in graph.module.graph.find_nodes(op="get_attr")}):
        value: torch.Tensor = attribute(graph.module, target)
        digest.update(f"{target} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(bytes_of(value))
    return digest.hexdigest()


def _spell(argument: Any) -> Any:
    """An argument of a call as JSON: operands by name, everything else (strides, modes) as is."""
    match argument:
        case Node():
            return ["operand", name_of(argument)]
        case list() | tuple():
            return [_spell(each) for each in cast("Sequence[Any]", argument)]
        case dict():
            items = cast("Mapping[str, Any]", argument).items()
            return {key: _spell(value) for key, value in items}
        case _:
            return repr(argument)


def content_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(bytes_of(value))
    return digest.hexdigest()


def plan_tensors(
    graph: Graph,
    weights: Mapping[str, WeightTable],
    biases: Mapping[str, torch.Tensor],
    factors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], str]:
    """What plan.safetensors holds, and the JSON structure of the example inputs in it.

    factors: by which the graph was equalised, by layer name; none when it was not.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, table in weights.items():
        tensors[f"{name}/values"] = table.values.contiguous()
        if table.scale is not None:
            tensors[f"{name}/scale"] = table.scale.contiguous()
        if table.table is not None:
            tensors[f"{name}/table"] = table.table.contiguous()
    for name, bias in biases.items():
        tensors[f"{name}/bias"] = bias.contiguous()
    for name, factor in factors.items():
        tensors[f"{name}/factors"] = factor.contiguous()
    leaves, spec = pytree.tree_flatten((graph.args, graph.kwargs))
    constants: dict[str, Any] = {}
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor):
            tensors[f"input/{index}"] = leaf.detach().contiguous().clone()
        elif isinstance(leaf, CONSTANTS):
            constants[str(index)] = leaf
        else:
            raise PlanError(f"an input of type {type(leaf).__name__} cannot be kept in a plan")
    tree = {"tree": json.loads(pytree.treespec_dumps(spec)), "constants": constants}
    return tensors, json.dumps(tree, sort_keys=True)


def example_from_tree(
    tree: str, tensors: Mapping[str, torch.Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Undo ``plan_tensors``: args and kwargs of the example inputs.

    Raises:
        PlanError: the structure cannot be read or a tensor of it is missing.
    """
    try:
        document = json.loads(tree)
        spec = pytree.treespec_loads(json.dumps(document["tree"]))
        constants: dict[str, Any] = document["constants"]
        leaves = [
            constants[str(i)] if str(i) in constants else tensors[f"input/{i}"]
            for i in range(spec.num_leaves)
        ]
        args, kwargs = pytree.tree_unflatten(leaves, spec)
    except (ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise PlanError(
            f"the plan's example inputs cannot be rebuilt ({error!r}); make the plan again"
        ) from error
    return tuple(args), dict(kwargs)


def assignment_of(layers: Sequence[LayerDecision]) -> dict[str, LayerAssignment]:
    """Scheme and algorithm by layer name."""
    return {d.name: LayerAssignment(scheme=d.scheme, algorithm=d.algorithm) for d in layers}


def params_of(plan: Plan) -> dict[str, ActivationParams]:
    """Static parameters by tensor name, of those the plan leaves in float too."""
    return {
        t.name: ActivationParams(scale=t.scale, zero_point=t.zero_point, dtype=t.dtype)
        for t in plan.tensors
    }


def stored_table(weight: str, tensors: Mapping[str, torch.Tensor]) -> WeightTable:
    """The table of one weight that ``plan_tensors`` stored."""
    return WeightTable(
        values=tensors[f"{weight}/values"],
        scale=tensors.get(f"{weight}/scale"),
        table=tensors.get(f"{weight}/table"),
    )


def _quantize(plan: Plan, graph: Graph, tensors: Mapping[str, torch.Tensor]) -> QuantizedGraph:
    capability = capability_named(plan.runtime)
    weights: dict[str, WeightTable] = {}
    biases: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        path, _, kind = name.rpartition("/")
        if kind == "values":
            weights[path] = stored_table(path, tensors)
        elif kind == "bias":
            biases[path] = tensor
    quantized = quantize(
        graph,
        assignment_of(plan.layers),
        weights=weights,
        params=params_of(plan),
        regions=regions_of(graph, capability),
        rules=capability.static,
        dynamic=capability.dynamic,
        biases=biases,
    )
    return replace(quantized, batch=plan.batch, sequence=plan.sequence)


def _load_recorded(plan: Plan) -> Any:
    if plan.model is None:
        raise PlanError(
            "the plan names no model to load; pass the float model: Plan.load(path, model=...)"
        )
    from advisor.modelsource import load_model

    return load_model(plan.model).model
