"""A quantized graph in, a strongly typed ONNX model in memory out.

Every precision is in the file: TensorRT 11 has no other way to be told. Tensors between layers are
float32; a layer in float16 or bfloat16 has casts around it, which the compiler fuses into their
neighbours.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from advisor.passes.graph import QuantizedGraph
from advisor.targets.onnxruntime.export import IR_VERSION, calls_of, write_layer
from advisor.targets.onnxruntime.forms.builder import Builder
from advisor.targets.onnxruntime.markers import DOMAIN as MARKER_DOMAIN
from advisor.targets.onnxruntime.markers import LAYER
from advisor.targets.onnxruntime.skeleton import OPSET, skeleton_of
from advisor.targets.onnxruntime.tidy import NAME_PROPERTY
from advisor.targets.tensorrt.fences import add_fences
from advisor.targets.tensorrt.forms import FORMS
from advisor.targets.tensorrt.forms.float4 import DOMAIN
from advisor.targets.tensorrt.sites import write_site
from advisor.targets.uses import find_uses, sites_of

if TYPE_CHECKING:
    import onnx_ir as ir

BFLOAT16_OPSET: Final = 22
"""The first with a Conv of bfloat16."""

FLOAT4_VERSIONS: Final = (23, 11)
"""Opset and IR version that first have four-bit floats."""


def export_onnx(graph: QuantizedGraph) -> ir.Model:
    """The ONNX model of ``graph``: inputs, outputs, layers and dimensions under stable names.

    Raises:
        UnsupportedError: a layer or a tensor has a form that TensorRT does not take.
        VerificationError: a dimension that should be dynamic became fixed.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    uses = find_uses(graph.module)
    model = skeleton_of(graph.float_graph, sites_of(uses), "tensorrt").clone()
    used = Counter(str(node.name) for node in model.graph)
    calls = calls_of(graph)
    for marker in [node for node in model.graph if node.domain == MARKER_DOMAIN]:
        name = marker.metadata_props[NAME_PROPERTY]
        if marker.op_type == LAYER:
            used[name] = 0
            build = Builder(model=model, before=marker, name=name, used=used)
            write_layer(build, marker, calls[name], graph, FORMS)
        else:
            write_site(model, marker, uses, used)
        model.graph.remove(marker, safe=True)
    RemoveUnusedNodesPass()(model)
    add_fences(model, used)
    _set_versions(model)
    return model


def _set_versions(model: ir.Model) -> None:
    """The opset that the narrowest floats need, and no other domain."""
    kinds = {str(value.dtype) for value in model.graph.initializers.values()}
    opset, version = BFLOAT16_OPSET if "BFLOAT16" in kinds else OPSET, IR_VERSION
    model.graph.opset_imports.clear()
    if "FLOAT4E2M1" in kinds:
        opset, version = FLOAT4_VERSIONS
        model.graph.opset_imports[DOMAIN] = 1
    model.graph.opset_imports[""] = opset
    model.ir_version = version
