"""Linear layers: Gemm or MatMul of the weight as ``weights.py`` stores it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from advisor.targets.onnxruntime.forms.builder import Builder
from advisor.targets.onnxruntime.forms.form import Call
from advisor.targets.tensorrt.forms.float4 import MOST_DIMENSIONS, quantize_float4
from advisor.targets.tensorrt.forms.form import Form, read_weighted
from advisor.targets.tensorrt.forms.weights import (
    cast_back,
    cast_to,
    compute_kind,
    write_bias,
    write_weight,
)

if TYPE_CHECKING:
    import onnx_ir as ir


def write(build: Builder, call: Call) -> tuple[ir.Value, ...]:
    """The layer under its scheme, bias included, from float32 to float32."""
    kind = compute_kind(call.scheme)
    source, weight = call.inputs[:2]
    x = cast_to(build, source, kind, role="input")
    rank = None if source.shape is None else len(source.shape)
    sizes: ir.Value | None = None
    if call.scheme.weight.dtype == "fp4":
        if rank is not None and rank > MOST_DIMENSIONS:
            sizes = build.node("Shape", [x], role="input", end=-1)
            x, rank = _reshape(build, x, [-1, call.layer.weight_shape[1]], role="input"), 2
        x = quantize_float4(build, x)
    real, bias = write_weight(build, call, weight), write_bias(build, call)
    if rank == 2 and bias is not None:
        product = build.node("Gemm", [x, real, bias], role="op", transB=1)
    else:
        columns = build.node("Transpose", [real], role="weight", perm=[1, 0])
        product = build.node("MatMul", [x, columns], role="op")
        if bias is not None:
            product = build.node("Add", [product, bias], role="output")
    if sizes is not None:
        outputs = build.constant(f"{build.name}/outputs", np.array(call.layer.weight_shape[:1]))
        whole = build.node("Concat", [sizes, outputs], role="output", axis=0)
        product = build.node("Reshape", [product, whole], role="output")
    return (cast_back(build, product, kind),)


def _reshape(build: Builder, x: ir.Value, sizes: list[int], *, role: str) -> ir.Value:
    return build.node(
        "Reshape", [x, build.constant(f"{build.name}/rows", np.array(sizes))], role=role
    )


FORM: Final = Form(write=write, read=read_weighted, operators=frozenset({"Gemm", "MatMul"}))
