"""Cut one layer out of an ONNX model, quantizers included, so that it fuses as in the whole."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advisor.targets.manifest import LayerRecord
from advisor.targets.onnxruntime.forms import form_of
from advisor.targets.onnxruntime.onnxfile import load_model, save_model
from advisor.targets.onnxruntime.session import EXTERNAL, open_session
from advisor.targets.onnxruntime.tidy import NAME_PROPERTY, ROLE_PROPERTY

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Cut:
    """A stretch of the model from the values ``starts`` to the value ``end``."""

    starts: tuple[ir.Value, ...]
    end: ir.Value


def labelled(model: ir.Model, name: str, *roles: str) -> list[ir.Node]:
    """Nodes of that stable name with one of the roles, in order."""
    return [
        node
        for node in model.graph
        if node.metadata_props.get(NAME_PROPERTY) == name
        and node.metadata_props.get(ROLE_PROPERTY) in roles
    ]


def find_cut(model: ir.Model, layer: LayerRecord, quantized_as: str) -> Cut | None:
    """Where a layer begins and ends; None when the model does not have it.

    It begins at the integers (static) or floats it reads. quantized_as: name of the tensor whose
    integers end the layer, or empty when the layer ends in floats.
    """
    own = labelled(model, layer.node, "op", "output")
    main = next((node for node in own if node.name == layer.node), None)
    form = form_of(layer)
    if main is None or form is None:
        return None
    starts = form.start(main, layer)
    end: ir.Value | None = own[-1].outputs[0]
    if quantized_as:
        quantizers = labelled(model, quantized_as, "quantize")
        end = quantizers[0].outputs[0] if quantizers else None
    if not starts or end is None:
        return None
    cut = Cut(starts, end)
    _, sources = _between(cut)
    return cut if all(source.is_initializer() for source in sources) else None


def run_cut(
    model: ir.Model,
    cut: Cut,
    feeds: Sequence[Array],
    expected: Array,
    entries: Mapping[str, str],
    *,
    as_written: bool = False,
) -> tuple[Array, frozenset[str]]:
    """Execute a cut on ``feeds``, one per start; also the operators that really ran.

    as_written: see ``open_session``. expected: an array of the output's dtype and rank. Sizes that
    the whole model leaves open stay open here, because ONNX Runtime fuses differently where it
    knows them.
    """
    import onnx_ir as ir

    nodes, constants = _between(cut)
    renamed: dict[int, ir.Value] = {}
    inputs_by_name: dict[str, Array] = {}
    for old, feed in zip(cut.starts, feeds, strict=True):
        start = _value(str(old.name), feed)
        if old.shape is not None and len(old.shape) == feed.ndim:
            start.shape = old.shape
        renamed[id(old)] = start
        inputs_by_name[str(old.name)] = feed
    begin = list(renamed.values())
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
    end.type = _value("", expected).type
    end.shape = ir.Shape([None] * expected.ndim)
    graph = ir.Graph(
        begin,
        [end],
        nodes=copies,
        initializers=initializers,
        opset_imports=dict(model.graph.opset_imports),
        name="cut",
    )
    cut_model = ir.Model(graph, ir_version=model.ir_version)
    return _run(cut_model, inputs_by_name, entries, as_written)


def _between(cut: Cut) -> tuple[list[ir.Node], list[ir.Value]]:
    """Nodes that lead from the starts to the end, in order, and the constants they read."""
    wanted: set[int] = set()
    nodes: list[ir.Node] = []
    constants: dict[int, ir.Value] = {}
    stack = [cut.end]
    while stack:
        value = stack.pop()
        if any(value is start for start in cut.starts):
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


def _run(
    model: ir.Model, feed: Mapping[str, Array], entries: Mapping[str, str], as_written: bool
) -> tuple[Array, frozenset[str]]:
    with tempfile.TemporaryDirectory(prefix="advisor-") as folder:
        path, optimized = Path(folder) / "cut.onnx", Path(folder) / "optimized.onnx"
        save_model(model, path, external="cut.onnx.data")
        settings = {**entries, **EXTERNAL}
        session = open_session(
            path, settings, optimized=optimized, threads=1, as_written=as_written
        )
        kernels = frozenset(node.op_type for node in load_model(optimized).graph)
        return np.asarray(session.run(None, dict(feed))[0]), kernels
