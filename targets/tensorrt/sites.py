"""Statically quantized tensors: QuantizeLinear and DequantizeLinear where the plan has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from advisor.errors import UnsupportedError
from advisor.passes.quantize import float8_name
from advisor.targets.onnxruntime.forms.builder import Builder
from advisor.targets.onnxruntime.rewrite import replace_value
from advisor.targets.onnxruntime.tidy import NAME_PROPERTY
from advisor.targets.tensorrt.numbers import ONNX_KINDS
from advisor.targets.uses import Use

if TYPE_CHECKING:
    import onnx_ir as ir


def write_site(
    model: ir.Model, marker: ir.Node, uses: Mapping[str, Use], counter: Counter[str]
) -> None:
    """Replace a site's marker by quantizers, or by nothing when the plan has none there.

    A tensor may be read as int8 by some layers and as float8 by others.

    Scales are float32 and the zero point is 0, which is always written: a QuantizeLinear without
    one is to uint8.

    Raises:
        UnsupportedError: another zero point than 0.
    """
    source, output = marker.inputs[0], marker.outputs[0]
    assert source is not None  # a marker has its tensor
    tensor = marker.metadata_props[NAME_PROPERTY]
    for name in (tensor, float8_name(tensor)):
        use = uses.get(name)
        if use is None:
            continue
        floats = _quantize(
            Builder(model=model, before=marker, name=name, used=counter), source, use
        )
        floats.shape, floats.type = output.shape, output.type
        if use.readers is None:
            replace_value(model, output, floats)
            return
        for reader, index in list(output.uses()):
            if reader.metadata_props.get(NAME_PROPERTY) in use.readers:
                reader.replace_input_with(index, floats)
    replace_value(model, output, source)


def _quantize(build: Builder, source: ir.Value, use: Use) -> ir.Value:
    """The tensor after a QuantizeLinear and a DequantizeLinear."""
    import onnx_ir as ir

    name = build.name
    if use.params.zero_point:
        raise UnsupportedError(
            f"{name} is quantized with zero point {use.params.zero_point}; TensorRT takes 0 alone: "
            "plan for it, so that activations are symmetric"
        )
    scale = build.constant(f"{name}.activation_scale", np.array(use.params.scale, np.float32))
    narrow = ir.DataType[ONNX_KINDS[use.params.dtype]].numpy()
    zero = build.constant(f"{name}.activation_zero_point", np.zeros((), narrow))
    integers = build.node("QuantizeLinear", [source, scale, zero], role="quantize")
    integers.shape, integers.type = source.shape, zero.type
    return build.node("DequantizeLinear", [integers, scale, zero], role="dequantize")
