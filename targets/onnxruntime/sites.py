"""Statically quantized tensors: QuantizeLinear and DequantizeLinear where the plan has them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from advisor.targets.onnxruntime.forms.builder import Builder
from advisor.targets.onnxruntime.forms.weights import constant_array
from advisor.targets.onnxruntime.rewrite import before_pad, before_views, replace_value
from advisor.targets.onnxruntime.tidy import NAME_PROPERTY
from advisor.targets.uses import Use

if TYPE_CHECKING:
    import onnx_ir as ir

MOVED_ACROSS: Final = frozenset(
    {"MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
"""ONNX Runtime 1.31 moves a QuantizeLinear from behind these operators to before them."""


def write_site(model: ir.Model, marker: ir.Node, use: Use | None, counter: Counter[str]) -> None:
    """Replace a site's marker by quantizers, or by nothing when the plan has none there."""
    source, output = marker.inputs[0], marker.outputs[0]
    assert source is not None  # a marker has its tensor
    if use is None:
        replace_value(model, output, source)
        return
    name = marker.metadata_props[NAME_PROPERTY]
    build = Builder(model=model, before=marker, name=name, used=counter)
    scale = build.constant(f"{name}.activation_scale", np.array(use.params.scale, np.float32))
    zero = build.constant(
        f"{name}.activation_zero_point", np.array(use.params.zero_point, use.params.dtype)
    )
    _keep_from_outputs(build, source)
    # Only second operands of products are int8. ONNX Runtime moves a QuantizeLinear before the
    # Transpose that feeds it, and makes int8 uint8 there; then a DequantizeLinear and a
    # QuantizeLinear stay behind (measured, 1.31.1). Already in its place it is not moved, and
    # bytes are cheaper to rearrange than floats.
    is_second = use.params.dtype == "int8"
    base, views = before_views(source) if is_second else before_pad(source)
    integers = build.node("QuantizeLinear", [base, scale, zero], role="quantize")
    for view in views:
        integers.type = zero.type
        kept = {attribute.name: attribute.value for attribute in view.attributes.values()}
        others = list(view.inputs[1:])
        if view.op_type == "Pad":
            others[1:2] = [_quantized_pad(build, view, use)]
        integers = build.node(view.op_type, [integers, *others], role="view", **kept)
    floats = build.node("DequantizeLinear", [integers, scale, zero], role="dequantize")
    integers.shape = floats.shape = output.shape
    integers.type, floats.type = zero.type, output.type
    if use.readers is None:
        replace_value(model, output, floats)
        return
    for reader, index in list(output.uses()):
        if reader.metadata_props.get(NAME_PROPERTY) in use.readers:
            reader.replace_input_with(index, floats)
    replace_value(model, output, source)


def _quantized_pad(build: Builder, pad: ir.Node, use: Use) -> ir.Value:
    """The integer that a Pad fills with: its constant, quantized as the tensor is."""
    given = constant_array(pad.inputs[2]) if len(pad.inputs) > 2 else None
    value = 0.0 if given is None else float(given)
    limits = np.iinfo(use.params.dtype)
    integer = np.clip(
        np.rint(value / use.params.scale) + use.params.zero_point, limits.min, limits.max
    )
    return build.constant(f"{build.name}.padding", np.array(integer, use.params.dtype))


def _keep_from_outputs(build: Builder, value: ir.Value) -> None:
    """Stop a quantizer of ``value`` from moving up to an output of the model.

    Where one operator reads an output of the model, ONNX Runtime takes it for the only reader and
    quantizes the output too. A Max of one tensor stops that.
    """
    node = value.producer()
    while node is not None and node.op_type in MOVED_ACROSS:
        source = node.inputs[0]
        if source is None:
            return
        if source.is_graph_output() and len(source.uses()) == 1:
            apart = replace(build, before=node).node("Max", [source], role="fence")
            apart.shape, apart.type = source.shape, source.type
            node.replace_input_with(0, apart)
            return
        node = source.producer()
