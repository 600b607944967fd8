"""NVFP4: weights and activations in four-bit floats with float8 scales per block of 16 inputs.

TensorRT's own operator quantizes activations while the engine runs; ONNX has none that finds
scales. Both operands are dequantized twice: the scales by their unit, the numbers by the scales.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from advisor.passes.float4 import ACTIVATION_UNIT, split_scales
from advisor.passes.graph import WeightTable
from advisor.targets.onnxruntime.forms.builder import DOMAINS, Builder
from advisor.targets.tensorrt.numbers import Array, array_of, stored_array

if TYPE_CHECKING:
    import onnx_ir as ir

BLOCK: Final = 16
QUANTIZER: Final = "TRT_FP4DynamicQuantize"
"""(tensor, unit) -> numbers, their scales over the unit
(https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/operators/DynamicQuantize.html)."""

MOST_DIMENSIONS: Final = 3
"""Of what the operator quantizes (measured, TensorRT-RTX 1.7.1.116)."""

DOMAIN: Final = DOMAINS[QUANTIZER]
FLOAT8_NUMBER: Final = 17
"""onnx.TensorProto.FLOAT8E4M3FN."""


def write_float4(build: Builder, name: str, table: WeightTable) -> ir.Value:
    """A weight as float32 that the compiler knows to be float4. name: the weight's."""
    assert table.scale is not None  # every block has one
    codes, unit = split_scales(table.scale)
    numbers = build.constant(f"{name}_quantized", array_of(table.values.float()), "FLOAT4E2M1")
    blocks = build.constant(f"{name}_scale", array_of(codes))
    whole = build.constant(f"{name}_unit", np.array(unit, np.float32))
    return _dequantize(build, numbers, blocks, whole, role="weight")


def quantize_float4(build: Builder, x: ir.Value) -> ir.Value:
    """An activation of float32, quantized with scales of its own and back."""
    unit = build.constant("advisor.float4_unit", np.array(ACTIVATION_UNIT, np.float32))
    numbers, blocks = build.nodes(
        QUANTIZER,
        [x, unit],
        role="input",
        outputs=2,
        axis=-1,
        block_size=BLOCK,
        scale_type=FLOAT8_NUMBER,
    )
    given = _dequantize(build, numbers, blocks, unit, role="input")
    given.shape, given.type = x.shape, x.type
    return given


def _dequantize(
    build: Builder, numbers: ir.Value, blocks: ir.Value, unit: ir.Value, *, role: str
) -> ir.Value:
    scales = build.node("DequantizeLinear", [blocks, unit], role=role)
    return build.node("DequantizeLinear", [numbers, scales], role=role, axis=-1, block_size=BLOCK)


def read_block_scales(value: ir.Value | None) -> Array | None:
    """Constant scales that are stored as float8 and a unit; None when it is something else."""
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    codes, unit = stored_array(producer.inputs[0]), stored_array(producer.inputs[1])
    if codes is None or unit is None:
        return None
    scales: Array = codes.astype(np.float32) * unit
    return scales
