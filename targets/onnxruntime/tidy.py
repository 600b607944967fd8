"""Make an exported ONNX model say what it is: stable names, packed integers, nothing private."""

from __future__ import annotations

import ast
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from torch.fx import Node

from advisor.errors import VerificationError
from advisor.passes.graph import ROLE_KEY, Graph, name_of

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch.export import ExportedProgram

NAME_PROPERTY: Final = "advisor.name"
ROLE_PROPERTY: Final = "advisor.role"
"""Metadata of ONNX nodes: the layer or tensor they belong to, and their part in it."""

_SCOPES: Final = "pkg.torch.onnx.name_scopes"
_PRODUCER: Final = "quantadvisor"


def tidy(model: ir.Model, program: ExportedProgram, source: Graph) -> ir.Model:
    """Given the exporter's model of ``program``; changes it in place and returns it.

    Result: constants folded (never a weight), nodes, inputs, outputs and dynamic dimensions under
    stable names, metadata reduced to names.

    Raises:
        VerificationError: a dimension that ``source`` declares dynamic became fixed.
    """
    _label(model, {node.name: node for node in program.graph.nodes})
    _fold_constants(model)
    _name_dimensions(model, source)
    _name_inputs_and_outputs(model, source)
    _name_nodes(model)
    _forget(model)
    return model


def _fold_constants(model: ir.Model) -> None:
    """Compute what depends on no input and no weight. Layers called twice stay two layers."""
    from onnx_ir.passes import Sequential, common
    from onnxscript.optimizer import fold_constants_ir

    stored = set(model.graph.initializers)

    def may_fold(node: ir.Node) -> bool | None:
        reads_weight = any(value is not None and value.name in stored for value in node.inputs)
        return False if reads_weight else None

    common.InlinePass()(model)
    fold_constants_ir(model, onnx_shape_inference=True, should_fold=may_fold)
    Sequential(
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.NameFixPass(),
    )(model)


def _label(model: ir.Model, nodes: dict[str, Node]) -> None:
    """Put name and role of the FX node that a node was translated from into its metadata."""
    for node in model.graph:
        scopes = node.metadata_props.get(_SCOPES)
        origin = nodes.get(ast.literal_eval(scopes)[-1]) if scopes else None
        if origin is None:
            continue
        node.metadata_props[NAME_PROPERTY] = name_of(origin)
        node.metadata_props[ROLE_PROPERTY] = _role_of(origin)


def _role_of(node: Node) -> str:
    """The node's part in its layer or tensor; empty when it has none."""
    custom: dict[str, Any] = node.meta.get("custom") or {}
    return str(custom.get(ROLE_KEY, ""))


def _rename(model: ir.Model, value: ir.Value, wanted: str) -> None:
    taken = {other.name for other in model.graph.initializers.values() if other is not value}
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    if value.name == name:
        return
    owned = value.is_initializer()
    if owned and value.name is not None:
        del model.graph.initializers[value.name]
    value.name = name
    if value.const_value is not None:
        value.const_value.name = name
    if owned:
        model.graph.initializers[name] = value


def _name_dimensions(model: ir.Model, source: Graph) -> None:
    """Replace torch's symbols (s77) by the declared names (batch), everywhere."""
    import onnx_ir as ir

    symbols: dict[str, str] = {}
    for value, name in zip(model.graph.inputs, _input_names(model, source), strict=True):
        for axis, label in source.dynamic.get(name, {}).items():
            dim = value.shape[axis] if value.shape is not None else None
            if not isinstance(dim, ir.SymbolicDim) or dim.value is None:
                raise VerificationError(
                    f'dimension {axis} ("{label}") of input {name} is dynamic in the plan, but '
                    f"became {dim} when exported again: an operator fixes it; "
                    "plan with a fixed batch, or remove the operator that reads this size"
                )
            # Two sizes of one kind (source and target length) are two names: ONNX Runtime plans
            # its buffers by them.
            taken = [used for used in symbols.values() if re.fullmatch(rf"{label}(_\d+)?", used)]
            unique = f"{label}_{len(taken) + 1}" if taken else label
            symbols.setdefault(str(dim.value), unique)

    def named(dim: Any) -> Any:
        if not isinstance(dim, ir.SymbolicDim) or dim.value is None:
            return dim
        return re.sub(r"\w+", lambda word: symbols.get(word.group(), word.group()), str(dim.value))

    for value in _values(model):
        if value.shape is not None and any(isinstance(dim, ir.SymbolicDim) for dim in value.shape):
            value.shape = ir.Shape([named(dim) for dim in value.shape])


def _values(model: ir.Model) -> list[ir.Value]:
    outputs = [value for node in model.graph for value in node.outputs]
    return [*model.graph.inputs, *outputs]


def _input_names(model: ir.Model, source: Graph) -> list[str]:
    """Names of the model's tensor inputs; scalars that export fixed are no inputs any more."""
    if len(model.graph.inputs) == len(source.input_names):
        return list(source.input_names)
    kept = {str(value.name) for value in model.graph.inputs}
    names = [name for name in source.input_names if name in kept]
    if len(names) != len(kept):
        raise VerificationError(
            f"the exported model takes {sorted(kept)}, the captured one {source.input_names}"
        )
    return names


def _name_inputs_and_outputs(model: ir.Model, source: Graph) -> None:
    import onnx_ir as ir

    graph = model.graph
    if len(graph.outputs) != len(source.output_names):
        raise VerificationError(
            f"the exported model returns {len(graph.outputs)} tensors, the captured one "
            f"{len(source.output_names)}: {', '.join(source.output_names)}"
        )
    seen: set[int] = {id(value) for value in graph.inputs}
    for index, value in enumerate(graph.outputs):
        if id(value) in seen or value.is_initializer():
            copy = ir.node("Identity", [value])
            copy.outputs[0].shape, copy.outputs[0].type = value.shape, value.type
            graph.append(copy)
            graph.outputs[index] = copy.outputs[0]
        seen.add(id(graph.outputs[index]))
    wanted = [*_input_names(model, source), *source.output_names]
    public = [*graph.inputs, *graph.outputs]
    for value in [*_values(model), *list(graph.initializers.values())]:
        if value.name in wanted and value.is_initializer():
            _rename(model, value, f"{value.name}/constant")
        elif value.name in wanted and all(value is not other for other in public):
            value.name = f"{value.name}/value"
    for value, name in zip(public, wanted, strict=True):
        value.name = name


def _name_nodes(model: ir.Model) -> None:
    """Nodes: the stable name of what they compute; numbered where one takes several nodes."""
    used: Counter[str] = Counter()
    for node in model.graph:
        base = node.metadata_props.get(NAME_PROPERTY) or node.op_type
        used[base] += 1
        node.name = base if used[base] == 1 else f"{base}/{used[base]}"


def _forget(model: ir.Model) -> None:
    """Drop everything that names files, machines or the exporter's internals."""
    model.producer_name, model.producer_version = _PRODUCER, ""
    model.doc_string = model.graph.doc_string = None
    model.graph.name = "model"
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        kept = {
            key: node.metadata_props[key]
            for key in (NAME_PROPERTY, ROLE_PROPERTY)
            if node.metadata_props.get(key)
        }
        node.metadata_props.clear()
        node.metadata_props.update(kept)
        node.doc_string = None
    for value in [*_values(model), *model.graph.initializers.values()]:
        value.metadata_props.clear()
        value.doc_string = None
