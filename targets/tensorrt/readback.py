"""What a TensorRT model really holds, layer by layer, from the file alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from advisor.passes.digest import table_sha256
from advisor.passes.graph import WeightTable
from advisor.targets.base import LayerFormat
from advisor.targets.manifest import LayerRecord, TensorRecord
from advisor.targets.onnxruntime.forms.form import Found
from advisor.targets.onnxruntime.reach import reads_inputs
from advisor.targets.onnxruntime.tidy import NAME_PROPERTY, ROLE_PROPERTY
from advisor.targets.tensorrt.forms import form_of
from advisor.targets.tensorrt.forms.weights import SCHEMES
from advisor.targets.tensorrt.numbers import (
    ONNX_KINDS,
    kind_of,
    stored_array,
    tensor_of,
)

if TYPE_CHECKING:
    import onnx_ir as ir

DTYPES: Final = {kind: dtype for dtype, kind in ONNX_KINDS.items()}


def read_layers(model: ir.Model, layers: Iterable[LayerRecord]) -> dict[str, LayerFormat]:
    """The format of every layer that can be found; kernels are left empty.

    layers: names, operators and shapes to look for; nothing else of them is trusted.
    """
    nodes = {str(node.name): node for node in model.graph}
    formats: dict[str, LayerFormat] = {}
    for layer in layers:
        node, form = nodes.get(layer.node), form_of(layer)
        found: Found | None = None
        if node is not None and form is not None and node.op_type in form.operators:
            found = form.read(node, layer)
        found = found or _find_constant(model, layer)
        if found is not None:
            digest = "" if found.table is None else table_sha256(found.table)
            formats[layer.name] = LayerFormat(scheme=found.scheme, weight_sha256=digest)
    return formats


def read_tensors(model: ir.Model, names: Iterable[str]) -> dict[str, tuple[TensorRecord, ...]]:
    """Scale, zero point and dtype at every QuantizeLinear and DequantizeLinear of a tensor."""
    found: dict[str, list[TensorRecord]] = {name: [] for name in names}
    for node in model.graph:
        name = node.metadata_props.get(NAME_PROPERTY, "")
        is_static = node.metadata_props.get(ROLE_PROPERTY) in ("quantize", "dequantize")
        if not is_static or name not in found:
            continue
        scale, zero = stored_array(node.inputs[1]), stored_array(node.inputs[2])
        if scale is not None and zero is not None:
            kind = kind_of(node.inputs[2])
            found[name].append(
                TensorRecord(
                    name=name,
                    scale=float(scale),
                    zero_point=int(zero),
                    dtype=DTYPES.get(kind, kind.lower()),
                )
            )
    return {name: tuple(records) for name, records in found.items()}


def find_inputless(model: ir.Model, layers: Iterable[LayerRecord]) -> frozenset[str]:
    """Layers whose result does not depend on what is in the model's inputs.

    The compiler may compute them while it builds. Such are the first layers of a decoder that
    begins with zeros. The inputs' sizes say nothing of what is in them.
    """
    nodes = {str(node.name): node for node in model.graph}
    found = {layer.name: nodes[layer.node] for layer in layers if layer.node in nodes}
    return frozenset(name for name, node in found.items() if not reads_inputs(node.outputs[0]))


def _find_constant(model: ir.Model, layer: LayerRecord) -> Found | None:
    """A weight that no known operator reads (kept float): the constant of its own name."""
    for name in (layer.weight, f"{layer.weight}/constant"):
        value = model.graph.initializers.get(name)
        array = stored_array(value)
        if array is not None:
            kind = kind_of(value)
            return Found(
                scheme=SCHEMES.get(kind, kind.lower()), table=WeightTable(values=tensor_of(array))
            )
    return None
