"""Cut one layer out of an ONNX model, quantizers included, so that it fuses as in the whole."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from advisor.targets.onnxruntime.session import open_session
from advisor.targets.onnxruntime.tidy import NAME_PROPERTY, ROLE_PROPERTY

if TYPE_CHECKING:
    import onnx_ir as ir

LARGE_BYTES: Final = 1_500_000_000
"""From here on weights go to a file beside the model: protobuf ends at 2 GiB."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Cut:
    """A stretch of the model from the value ``start`` to the value ``end``."""

    start: ir.Value
    end: ir.Value


def labelled(model: ir.Model, name: str, *roles: str) -> list[ir.Node]:
    """Nodes of that stable name with one of the roles, in order."""
    return [
        node
        for node in model.graph
        if node.metadata_props.get(NAME_PROPERTY) == name
        and node.metadata_props.get(ROLE_PROPERTY) in roles
    ]


def find_cut(model: ir.Model, layer: str, is_embedding: bool, quantized_as: str) -> Cut | None:
    """Where a layer begins and ends; None when the model does not have it.

    It begins at the integers (static) or floats it reads. quantized_as: name of the tensor whose
    integers end the layer, or empty when the layer ends in floats.
    """
    own = labelled(model, layer, "op", "output")
    main = next((node for node in own if node.name == layer), None)
    if main is None:
        return None
    start = _ids(main) if is_embedding else _activation(main, layer)
    end: ir.Value | None = own[-1].outputs[0]
    if quantized_as:
        quantizers = labelled(model, quantized_as, "quantize")
        end = quantizers[0].outputs[0] if quantizers else None
    return None if start is None or end is None else Cut(start, end)


def _activation(node: ir.Node, layer: str) -> ir.Value | None:
    value = node.inputs[0]
    producer = value.producer() if value is not None else None
    if producer is not None and producer in _fences(producer, layer):
        value = producer.inputs[0]
    elif producer is not None and producer.op_type == "DequantizeLinear":
        source = producer.inputs[0]
        quantize = source.producer() if source is not None else None
        if quantize is not None and quantize.op_type == "QuantizeLinear":
            value = source
    return value


def _fences(node: ir.Node, layer: str) -> tuple[ir.Node, ...]:
    properties = node.metadata_props
    is_own = properties.get(NAME_PROPERTY) == layer and properties.get(ROLE_PROPERTY) == "input"
    return (node,) if is_own else ()


def _ids(node: ir.Node) -> ir.Value | None:
    """What an embedding's Gather, however it is spelled, reads as indices."""
    while node.op_type not in ("Gather", "GatherBlockQuantized"):
        source = node.inputs[0]
        producer = source.producer() if source is not None else None
        if producer is None:
            return None
        node = producer
    return node.inputs[1]


def run_cut(
    model: ir.Model, cut: Cut, feed: Array, expected: Array, entries: Mapping[str, str]
) -> Array:
    """Execute a cut on ``feed``; ``expected`` gives the output's dtype and shape."""
    import onnx_ir as ir

    nodes, constants = _between(cut)
    start = _value(str(cut.start.name), feed)
    renamed: dict[int, ir.Value] = {id(cut.start): start}
    initializers: list[ir.Value] = []
    for constant in constants:
        copy = ir.Value(name=constant.name, type=constant.type, shape=constant.shape)
        copy.const_value = constant.const_value
        renamed[id(constant)] = copy
        initializers.append(copy)
    copies: list[ir.Node] = []
    for node in nodes:
        inputs = [None if value is None else renamed[id(value)] for value in node.inputs]
        outputs = [ir.Value(name=value.name) for value in node.outputs]
        renamed.update({id(o): n for o, n in zip(node.outputs, outputs, strict=True)})
        copies.append(
            ir.Node(
                node.domain,
                node.op_type,
                inputs,
                list(node.attributes.values()),
                outputs=outputs,
                name=node.name,
            )
        )
    end = renamed[id(cut.end)]
    shaped = _value("", expected)
    end.type, end.shape = shaped.type, shaped.shape
    graph = ir.Graph(
        [start],
        [end],
        nodes=copies,
        initializers=initializers,
        opset_imports=dict(model.graph.opset_imports),
        name="cut",
    )
    cut_model = ir.Model(graph, ir_version=model.ir_version)
    outputs_found = _run(cut_model, {str(start.name): feed}, entries)
    return outputs_found


def _between(cut: Cut) -> tuple[list[ir.Node], list[ir.Value]]:
    """Nodes that lead from the start to the end, in order, and the constants they read."""
    wanted: set[int] = set()
    nodes: list[ir.Node] = []
    constants: dict[int, ir.Value] = {}
    stack = [cut.end]
    while stack:
        value = stack.pop()
        if value is cut.start:
            continue
        producer = value.producer()
        if producer is None:
            constants[id(value)] = value
        elif id(producer) not in wanted:
            wanted.add(id(producer))
            nodes.append(producer)
            stack.extend(source for source in producer.inputs if source is not None)
    graph = cut.end.producer()
    order = list(graph.graph) if graph is not None and graph.graph is not None else nodes
    return [node for node in order if id(node) in wanted], list(constants.values())


def _value(name: str, array: Array) -> ir.Value:
    import onnx_ir as ir

    kind = ir.DataType.from_numpy(array.dtype)
    shape = ir.Shape(list(array.shape))
    return ir.Value(name=name, type=ir.TensorType(kind), shape=shape)


def _run(model: ir.Model, feed: Mapping[str, Array], entries: Mapping[str, str]) -> Array:
    import onnx_ir as ir

    size = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    if size < LARGE_BYTES:
        session = open_session(ir.serde.serialize_model(model).SerializeToString(), entries)
        return np.asarray(session.run(None, dict(feed))[0])
    with tempfile.TemporaryDirectory(prefix="advisor-") as folder:
        path = Path(folder) / "cut.onnx"
        ir.save(model, path, external_data="cut.onnx.data")
        return np.asarray(open_session(path, entries).run(None, dict(feed))[0])
