"""What an ONNX file really holds, layer by layer, from the file alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from advisor.passes.digest import table_sha256
from advisor.passes.graph import WeightTable
from advisor.targets.base import LayerFormat
from advisor.targets.manifest import LayerRecord, TensorRecord
from advisor.targets.onnxruntime.forms import form_of
from advisor.targets.onnxruntime.forms.form import FLOAT_KINDS, Found
from advisor.targets.onnxruntime.forms.weights import constant_array
from advisor.targets.onnxruntime.tidy import NAME_PROPERTY, ROLE_PROPERTY

if TYPE_CHECKING:
    import onnx_ir as ir


def read_layers(model: ir.Model, layers: Iterable[LayerRecord]) -> dict[str, LayerFormat]:
    """The format of every layer that can be found; kernels are left empty.

    layers: names, operators and shapes to look for; nothing else of them is trusted.
    """
    nodes = {str(node.name): node for node in model.graph}
    formats: dict[str, LayerFormat] = {}
    for layer in layers:
        node, form = nodes.get(layer.node), form_of(layer)
        found = None if node is None or form is None else form.read(node, layer)
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
        scale, zero = constant_array(node.inputs[1]), constant_array(node.inputs[2])
        if scale is not None and zero is not None:
            found[name].append(
                TensorRecord(
                    name=name,
                    scale=float(scale),
                    zero_point=int(zero),
                    dtype=str(zero.dtype),
                )
            )
    return {name: tuple(records) for name, records in found.items()}


def _find_constant(model: ir.Model, layer: LayerRecord) -> Found | None:
    """A weight that no known operator reads (kept float): the constant of its own name."""
    for name in (layer.weight, f"{layer.weight}/constant"):
        value = model.graph.initializers.get(name)
        array = constant_array(value)
        if value is not None and value.dtype is not None and array is not None:
            kind = value.dtype.name
            table = WeightTable(values=torch.as_tensor(array))
            return Found(scheme=FLOAT_KINDS.get(kind, kind), table=table)
    return None
