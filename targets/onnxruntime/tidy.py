"""Make an exported ONNX model say what it is: stable names, packed integers, nothing private."""

from __future__ import annotations

import ast
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from torch.fx import Node

from advisor.errors import VerificationError
from advisor.passes import ops
from advisor.passes.graph import Graph, name_of
from advisor.targets.onnxruntime.nodes import role_of
from advisor.targets.onnxruntime.operators import GATHER_BLOCK_QUANTIZED

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch.export import ExportedProgram

NAME_PROPERTY: Final = "advisor.name"
ROLE_PROPERTY: Final = "advisor.role"
"""Metadata of ONNX nodes: the layer or tensor they belong to, and their part in it."""

_STORED_PROPERTY: Final = "advisor.stored"
_SCOPES: Final = "pkg.torch.onnx.name_scopes"
_PRODUCER: Final = "quantadvisor"
_IR_VERSION: Final = 10
_INT2_VERSIONS: Final = (25, 13)
"""Opset and IR that first have two-bit integers."""

_MAIN: Final = frozenset({"Conv", "MatMul", "Gemm", "GatherBlockQuantized"})
"""Operators that stand for their layer when one layer needs several nodes."""


def tidy(model: ir.Model, program: ExportedProgram, source: Graph) -> ir.Model:
    """Given the exporter's model of ``program``; changes it in place and returns it.

    Result: constants folded (never a weight), nodes, weights, scales, inputs, outputs and
    dynamic dimensions under stable names, narrow integers packed, metadata reduced to names.

    Raises:
        VerificationError: a dimension that ``source`` declares dynamic became fixed.
    """
    _label(model, {node.name: node for node in program.graph.nodes})
    _name_weights(model)
    _fold_constants(model)
    _name_static(model)
    _pack(model)
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
        node.metadata_props[ROLE_PROPERTY] = role_of(origin)
        if origin.target is ops.DEQUANTIZE_AFFINE:
            node.metadata_props[_STORED_PROPERTY] = str(origin.args[5])
        elif origin.target is GATHER_BLOCK_QUANTIZED:
            node.metadata_props[_STORED_PROPERTY] = str(origin.args[4])


def _weight_inputs(node: ir.Node) -> dict[int, str]:
    """Which inputs of a node are stored parts of a weight, and the suffix of their names."""
    import onnx_ir as ir

    match node.op_type:
        case "DequantizeLinear":
            return {0: "weight", 1: "weight_scale", 2: "weight_zero_point"}
        case "GatherBlockQuantized":
            return {0: "weight", 2: "weight_scale"}
        case "Cast":
            return {0: "weight"}
        case "Gather":
            table = node.inputs[0]
            is_scale = table is not None and table.dtype == ir.DataType.FLOAT
            return {0: "weight_scale" if is_scale else "weight"}
        case _:
            return {}


def _name_weights(model: ir.Model) -> None:
    """Name integers, scales and float16 weights after the first layer that reads them."""
    for node in model.graph:
        if node.metadata_props.get(ROLE_PROPERTY) not in ("weight", "op"):
            continue
        layer = node.metadata_props[NAME_PROPERTY]
        for index, suffix in _weight_inputs(node).items():
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None and value.is_initializer() and "advisor" not in value.meta:
                value.meta["advisor"] = True
                _rename(model, value, f"{layer}.{suffix}")


def _name_static(model: ir.Model) -> None:
    """One scale and one zero point per activation tensor, named after it."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    known: dict[str, ir.Value] = {}
    for node in model.graph:
        if node.metadata_props.get(ROLE_PROPERTY) not in ("quantize", "dequantize"):
            continue
        tensor = node.metadata_props[NAME_PROPERTY]
        for index, suffix in ((1, "scale"), (2, "zero_point")):
            value, wanted = node.inputs[index], f"{tensor}.activation_{suffix}"
            if value is None or not value.is_initializer():
                continue
            if wanted not in known:
                known[wanted] = value
                _rename(model, value, wanted)
            elif _same(value, known[wanted]):
                node.replace_input_with(index, known[wanted])
    RemoveUnusedNodesPass()(model)


def _same(one: ir.Value, other: ir.Value) -> bool:
    if one.const_value is None or other.const_value is None:
        return False
    return bool(np.array_equal(one.const_value.numpy(), other.const_value.numpy()))


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


def _pack(model: ir.Model) -> None:
    """Give int4 and int2 weights their packed ONNX types, and the model the versions for them."""
    import onnx_ir as ir

    done: set[int] = set()
    versions = (model.graph.opset_imports[""], _IR_VERSION)
    for node in model.graph:
        stored = node.metadata_props.get(_STORED_PROPERTY)
        if stored not in ("int4", "int2"):
            continue
        indices = (0,) if node.op_type == "GatherBlockQuantized" else (0, 2)
        if node.op_type == "GatherBlockQuantized" and stored == "int2":
            node.attributes["bits"] = ir.AttrInt64("bits", 2)
        for index in indices:
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None or value.const_value is None or id(value) in done:
                continue
            done.add(id(value))
            if node.op_type == "GatherBlockQuantized" and stored == "int2":
                packed = ir.tensor(_two_bit_bytes(value), name=value.name)
            else:
                kind = ir.DataType.INT4 if stored == "int4" else ir.DataType.INT2
                integers = value.const_value.numpy().astype(kind.numpy())
                packed = ir.tensor(integers, dtype=kind, name=value.name)
                if stored == "int2":
                    versions = _INT2_VERSIONS
            value.const_value, value.dtype = packed, packed.dtype
            value.shape = ir.Shape(packed.numpy().shape)
    model.graph.opset_imports[""] = max(versions[0], model.graph.opset_imports[""])
    model.ir_version = versions[1]


def _two_bit_bytes(value: ir.Value) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Four unsigned two-bit integers per byte, lowest bits first, zero point 2."""
    tensor = value.const_value
    integers = (np.zeros((0, 4)) if tensor is None else tensor.numpy()).astype(np.int32) + 2
    quads = integers.reshape(*integers.shape[:-1], -1, 4) << np.array([0, 2, 4, 6])
    packed: np.ndarray[Any, np.dtype[np.uint8]] = quads.sum(-1).astype(np.uint8)
    return packed


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
            symbols.setdefault(str(dim.value), label)

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
    """Nodes: the layer's name for its main operator, else name/role; numbered where it repeats."""
    main: dict[str, ir.Node] = {}
    for node in model.graph:
        name = node.metadata_props.get(NAME_PROPERTY, "")
        is_layer = node.metadata_props.get(ROLE_PROPERTY) == "op"
        if is_layer and (name not in main or node.op_type in _MAIN or not _is_main(main[name])):
            main[name] = node
    used: Counter[str] = Counter(list(main))
    for node in model.graph:
        name = node.metadata_props.get(NAME_PROPERTY) or node.op_type
        if main.get(name) is node:
            node.name = name
            continue
        role = node.metadata_props.get(ROLE_PROPERTY, "")
        base = name if role in ("", "op") else f"{name}/{role}"
        used[base] += 1
        node.name = base if used[base] == 1 else f"{base}/{used[base]}"


def _is_main(node: ir.Node) -> bool:
    return node.op_type in _MAIN


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
