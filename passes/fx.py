"""Small graph operations that every pass needs: clone, attributes, flat execution."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import Graph as FxGraph
from torch.fx import GraphModule, Interpreter, Node
from torch.fx._lazy_graph_module import (
    _LazyGraphModule,  # pyright: ignore[reportPrivateUsage]  # see clone
)
from torch.utils import _pytree as pytree

from advisor.passes.graph import NAME_KEY, PASS_KEY, ROLE_KEY, Graph, name_of


def clone(module: GraphModule) -> GraphModule:
    """A GraphModule with nodes of its own that shares every tensor with ``module``.

    Its Python code is generated when something first calls it or reads its code. Passes and
    interpreters read the nodes alone, and a search makes many graphs that nobody ever calls.
    """
    graph = FxGraph()
    result: Any = graph.graph_copy(module.graph, val_map={}, return_output_node=True)
    value, old_output = result
    graph.output(value).meta = dict(old_output.meta)
    graph.set_codegen(_signature(module.graph))  # never changed by a pass
    copied = _LazyGraphModule(module, graph, class_name="GraphModule")
    copied.meta = dict(module.meta)
    return copied


def with_plain_outputs(module: GraphModule) -> GraphModule:
    """The module returning its outputs as one flat tuple, whatever class they are in now.

    A saved program that returns a class of another package can only be read where that is loaded.
    """
    plain = clone(module)
    codegen = copy.copy(_signature(module.graph))
    info = getattr(codegen, "pytree_info", None)
    if info is None or info.out_spec is None:
        return plain
    _, flat = pytree.tree_flatten((0,) * info.out_spec.num_leaves)
    codegen.pytree_info = info._replace(out_spec=flat)
    plain.graph.set_codegen(codegen)
    return plain


def _signature(graph: FxGraph) -> Any:
    """How the graph's code takes its arguments apart; torch.fx has no public way to read it."""
    return graph._codegen  # pyright: ignore[reportPrivateUsage]  # see above


def finish(module: GraphModule) -> GraphModule:
    """Drop dead nodes and unused attributes, check, and have the code generated anew."""
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def with_code(module: GraphModule) -> GraphModule:
    """The module itself, its code generated: ``forward`` has the signature of the graph."""
    _LazyGraphModule.force_recompile(module)
    return module


def attribute(module: torch.nn.Module, target: str) -> Any:
    """The value behind a ``get_attr`` target such as "encoder.layer.0.weight"."""
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def set_constant(module: GraphModule, target: str, value: torch.Tensor) -> str:
    """Register ``value`` under a dotted name, creating the submodules on the way; the name.

    A parameter stays one; any other tensor becomes a buffer.
    """
    *path, leaf = target.split(".")
    owner: torch.nn.Module = module
    for part in path:
        if not hasattr(owner, part):
            owner.add_module(part, torch.nn.Module())
        owner = getattr(owner, part)
    if hasattr(owner, leaf):
        delattr(owner, leaf)
    if isinstance(value, torch.nn.Parameter):
        owner.register_parameter(leaf, value)
    else:
        owner.register_buffer(leaf, value.detach())
    return target


def read_constant(module: GraphModule, before: Node, target: str) -> Node:
    """A new ``get_attr`` node for an existing attribute, placed before ``before``."""
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(target)
    node.meta["val"] = attribute(module, target)
    return node


def detach_parameters(module: torch.nn.Module) -> None:
    """Replace every parameter by one that shares its memory and needs no gradient.

    The parameters of a captured program are the very objects of the user's model.
    """
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            shared = torch.nn.Parameter(parameter.detach(), requires_grad=False)
            setattr(owner, name, shared)


def free_name(module: GraphModule, target: str) -> str:
    """``target`` or, when taken, ``target_2``, ``target_3``, ..."""
    candidate, number = target, 1
    while _has(module, candidate):
        number += 1
        candidate = f"{target}_{number}"
    return candidate


def insert_constant(module: GraphModule, before: Node, target: str, value: torch.Tensor) -> Node:
    """A ``get_attr`` node, placed before ``before``, of a new buffer.

    The name is ``target`` when nothing but ``before`` reads it so far, else a free one like it.
    """
    readers = {
        user
        for node in module.graph.find_nodes(op="get_attr", target=target)
        for user in node.users
    }
    if readers != {before}:
        target = free_name(module, target)
    return read_constant(module, before, set_constant(module, target, value))


def stamp(node: Node, *, made_by: str, name: str | None = None, role: str | None = None) -> Node:
    """Record in the metadata that survives re-export which pass made the node and for what."""
    custom = dict(node.meta.get("custom") or {})
    custom[PASS_KEY] = made_by
    if name is not None:
        custom[NAME_KEY] = name
    if role is not None:
        custom[ROLE_KEY] = role
    node.meta["custom"] = custom
    return node


def copy_meta(source: Node, target: Node) -> None:
    """Give a replacement node the provenance (module stack, source line, value) of the old one."""
    for key in ("nn_module_stack", "stack_trace", "val", "custom", "source_fn_stack"):
        if key in source.meta:
            target.meta[key] = source.meta[key]


def operator_name(node: Node) -> str:
    """What a node calls, without namespace, overload or trailing underscore: "max_pool2d"."""
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return str(schema.name).rpartition("::")[2]
    return str(getattr(node.target, "__name__", node.name))


def innermost_module(node: Node) -> tuple[str, str]:
    """Path and class of the module whose forward made the call; two empty strings for none."""
    stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    # torch.export marks calls of its own making by a stack of this name.
    real = [entry for entry in stack.values() if not entry[0].startswith("_empty_nn_module_stack")]
    if not real:
        return "", ""
    path, kind = real[-1]
    return path, kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def argument(node: Node, index: int) -> Any:
    """A positional argument of a call, None when it was left out."""
    return node.args[index] if index < len(node.args) else None


def constant_value(module: GraphModule, node: Any) -> torch.Tensor | None:
    """The tensor behind a ``get_attr`` node, or None when ``node`` is something else."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value = attribute(module, str(node.target))
    return value if isinstance(value, torch.Tensor) else None


def flatten_inputs(module: GraphModule, args: Iterable[Any], kwargs: dict[str, Any]) -> list[Any]:
    """One value per placeholder, in order, from a call's arguments."""
    info = getattr(_signature(module.graph), "pytree_info", None)
    if info is None:
        return [*args, *kwargs.values()]
    spec: pytree.TreeSpec = info.in_spec
    names = list(spec.children()[1].context)
    ordered = {name: kwargs[name] for name in names}
    flat, _ = pytree.tree_flatten((tuple(args), ordered))
    return flat


def unflatten_inputs(
    module: GraphModule, flat: Iterable[Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Undo ``flatten_inputs``: args and kwargs from one value per placeholder."""
    info = getattr(_signature(module.graph), "pytree_info", None)
    if info is None:
        return tuple(flat), {}
    args, kwargs = pytree.tree_unflatten(list(flat), info.in_spec)
    return tuple(args), dict(kwargs)


def placeholders(module: GraphModule) -> list[Node]:
    """The input nodes in order."""
    return [node for node in module.graph.nodes if node.op == "placeholder"]


def output_nodes(module: GraphModule) -> list[Node]:
    """The nodes that the graph returns, flattened, in order."""
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    return [arg for arg in pytree.tree_leaves(output.args[0]) if isinstance(arg, Node)]


class Tracer(Interpreter):
    """Runs a graph node by node; subclasses look at or replace values in ``observe``."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)

    def observe(self, node: Node, value: Any) -> Any:
        """Called with every computed value; what it returns is used downstream."""
        return value

    def run_node(self, n: Node) -> Any:
        """Compute one node, then let ``observe`` see it."""
        return self.observe(n, super().run_node(n))


def node_named(graph: Graph, name: str) -> Node:
    """The node with that stable name."""
    for node in graph.module.graph.nodes:
        if name_of(node) == name:
            found: Node = node
            return found
    raise KeyError(name)


def _has(module: torch.nn.Module, target: str) -> bool:
    value: Any = module
    for part in target.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True
