"""What NVIDIA's compiler does with graphs that a plan must never become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto

from advisor.targets.manifest import LayerRecord
from advisor.targets.onnxruntime.onnxfile import load_model
from advisor.targets.tensorrt import build_engine
from advisor.targets.tensorrt.compiler import Compiled, compile_model
from advisor.targets.tensorrt.engine import (
    GENERATED,
    acceptable_kernels,
    kernels_by_layer,
    parse_kernels,
)
from advisor.targets.tensorrt.lint import lint
from tests.targets.tensorrt.floats import (
    float16_product,
    float32_conv,
    float32_product,
    narrow_conv,
    widened_product,
)
from tests.targets.tensorrt.rejected import REJECTED
from tests.targets.tensorrt.silent import SILENT, int8_attention, int8_conv, int8_product

pytest.importorskip("tensorrt_rtx")

Build = Callable[[], ModelProto]


def compiled(build: Build, sm: str, path: Path) -> Compiled:
    onnx.save(build(), path)
    return compile_model(path, {}, sm=sm, tf32=True)


def record(name: str, scheme: str = "") -> LayerRecord:
    """The layer as a plan would have it: in ``scheme``, or in the one its file speaks of."""
    is_conv = "onv" in name
    if not scheme:
        scheme = "w8" if "blocks" in name or "weight-only int8" in name else "w8a8"
        scheme = "w4-g128" if "int4" in name else "nvfp4" if "FP" in name else scheme
    if name.startswith("product"):
        return LayerRecord(
            name="layer",
            op="matmul",
            scheme="a8a8",
            weight="",
            weight_shape=(),
            weight_sha256="",
            node="layer",
        )
    return LayerRecord(
        name="layer",
        op="conv2d" if is_conv else "linear",
        scheme=scheme,
        weight="w",
        weight_shape=(64, 64, 2, 2) if is_conv else (192, 64) if "small" in name else (256, 512),
        weight_sha256="",
        node="layer",
    )


@pytest.mark.parametrize("name", SILENT)
def test_a_silent_fallback_is_seen_in_the_kernels_and_in_the_file(
    name: str, tmp_path: Path
) -> None:
    build, sm = SILENT[name]
    found = compiled(build, sm, tmp_path / "model.onnx")
    assert not found.problems, "the compiler says nothing: that is the point"
    layer = record(name)
    read = kernels_by_layer(found.kernels, [layer])
    assert read["layer"] not in acceptable_kernels(layer)
    findings = lint(load_model(tmp_path / "model.onnx"), sm=sm)
    assert findings, "the rules know it without the compiler"


@pytest.mark.parametrize("name", REJECTED)
def test_what_is_rejected_breaks_a_rule_first(name: str, tmp_path: Path) -> None:
    build, sm = REJECTED[name]
    found = compiled(build, sm, tmp_path / "model.onnx")
    assert found.problems
    assert not found.kernels
    assert lint(load_model(tmp_path / "model.onnx"), sm=sm)


def test_nvfp4_is_refused_for_the_gpu_alone(tmp_path: Path) -> None:
    build, _ = REJECTED["NVFP4 on sm89"]
    found = compiled(build, "120", tmp_path / "model.onnx")
    assert found.problems == ()
    layer = record("NVFP4")
    assert kernels_by_layer(found.kernels, [layer])["layer"] in acceptable_kernels(layer)
    assert lint(load_model(tmp_path / "model.onnx"), sm="120") == []


def test_int8_convolutions_are_in_int8_from_sm80_on(tmp_path: Path) -> None:
    found = compiled(int8_conv, "80", tmp_path / "model.onnx")
    layer = record("conv")
    assert kernels_by_layer(found.kernels, [layer])["layer"] in acceptable_kernels(layer)
    assert lint(load_model(tmp_path / "model.onnx"), sm="80") == []


@pytest.mark.parametrize("tf32", [True, False])
def test_products_in_float32_are_compiled_for_another_gpu_than_sm75(
    tf32: bool, tmp_path: Path
) -> None:
    """TensorRT-RTX refuses them there, which is no fault of the file."""
    path = tmp_path / "model.onnx"
    onnx.save(float32_product(), path)
    refused = build_engine.build(path, {}, backend="rtx", sm="75", tf32=tf32)
    assert refused.engine is None
    assert "FP32 GEMM is not supported" in refused.problems[0]
    assert lint(load_model(path), sm="75") == []
    found = compile_model(path, {}, sm="75", tf32=tf32)
    assert (found.sm, found.stands_for, found.problems) == ("80", "75", ())
    assert kernels_by_layer(found.kernels, [record("linear", "fp32")]) == {
        "layer": "float32 weight, float32 input"
    }
    assert "for sm80, which stands for sm75 (TensorRT-RTX has no products in" in found.note


@pytest.mark.parametrize("sketch", [float32_conv, float16_product])
def test_everything_else_in_floats_is_compiled_for_sm75_itself(
    sketch: Build, tmp_path: Path
) -> None:
    found = compiled(sketch, "75", tmp_path / "model.onnx")
    assert (found.sm, found.problems, found.reason) == ("75", (), "")
    name, scheme = ("conv", "fp32") if sketch is float32_conv else ("linear", "fp16")
    layer = record(name, scheme)
    assert kernels_by_layer(found.kernels, [layer])["layer"] in acceptable_kernels(layer)


@pytest.mark.parametrize("sketch", [int8_product, int8_attention])
def test_the_other_gpu_does_not_let_int8_pass_on_sm75(sketch: Build, tmp_path: Path) -> None:
    """It is expanded to float32 there, and the kernels of sm80 would say int8."""
    found = compiled(sketch, "75", tmp_path / "model.onnx")
    assert (found.sm, found.problems) == ("80", ())
    rules = [each.rule for each in lint(load_model(tmp_path / "model.onnx"), sm="75")]
    assert rules == ["sm80 or newer for products of int8"]


@pytest.mark.parametrize("shape", [(1, 512, 256), (32, 512, 1), (32, 3, 256), (32, 1, 256)])
def test_products_that_are_written_out_round_their_own_input(
    shape: tuple[int, int, int], tmp_path: Path
) -> None:
    """One row, one output, few inputs: no kernel of products, and the weight stays in float16."""
    rows, width, outputs = shape
    layer = replace(record("linear", "fp16"), weight_shape=(outputs, width))
    found = compiled(lambda: float16_product(rows, width, outputs), "89", tmp_path / "model.onnx")
    assert {kernel.kind for kernel in found.kernels} == {GENERATED}
    assert kernels_by_layer(found.kernels, [layer])["layer"] == "float16 weight, float16 input"
    found = compiled(lambda: widened_product(rows, width, outputs), "89", tmp_path / "model.onnx")
    assert kernels_by_layer(found.kernels, [layer])["layer"].startswith("float32 weight")


@pytest.mark.parametrize("channels", [(1, 32), (3, 32), (12, 32), (32, 1), (32, 15), (3, 3)])
@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.float8_e4m3fn])
def test_convolutions_of_few_channels_stay_in_what_is_planned(
    channels: tuple[int, int], dtype: Any, tmp_path: Path
) -> None:
    """NVIDIA's own exporter leaves them in floats, which is about speed."""
    inputs, outputs = channels
    found = compiled(lambda: narrow_conv(inputs, outputs, dtype), "89", tmp_path / "model.onnx")
    scheme = "w8a8" if dtype is np.int8 else "fp8"
    layer = replace(record("conv", scheme), weight_shape=(outputs, inputs, 3, 3))
    assert kernels_by_layer(found.kernels, [layer])["layer"] in acceptable_kernels(layer)
    assert lint(load_model(tmp_path / "model.onnx"), sm="89") == []


def test_hopper_is_compiled_for_its_proxy_and_says_so(tmp_path: Path) -> None:
    found = compiled(int8_conv, "90", tmp_path / "model.onnx")
    assert (found.sm, found.stands_for) == ("89", "90")
    assert "for sm89, which stands for sm90" in found.note


def test_a_hash_does_not_make_a_product_of_a_kernel() -> None:
    line = "Name: a, LayerType: kgen, Inputs: [], TacticName: __myl_{}_0x38bfcd68, StreamId: 0"
    (plain,), (product,) = (parse_kernels([line.format(does)]) for does in ("CastMulSum", "Fc"))
    assert not plain.multiplies
    assert product.multiplies


def test_lines_that_are_no_kernels_are_left_out() -> None:
    assert parse_kernels(["Bindings:", "", "Name: a, LayerType: gemm, Inputs: []"])[0].name == "a"
    assert parse_kernels(["nothing of the kind"]) == ()
