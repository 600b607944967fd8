"""What NVIDIA's compiler does with graphs that a plan must never become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto

from advisor.targets.manifest import LayerRecord
from advisor.targets.onnxruntime.onnxfile import load_model
from advisor.targets.tensorrt import build_engine
from advisor.targets.tensorrt.compiler import Compiled, compile_model
from advisor.targets.tensorrt.engine import acceptable_kernels, kernels_by_layer, parse_kernels
from advisor.targets.tensorrt.lint import lint
from tests.targets.tensorrt.floats import float16_product, float32_conv, float32_product
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


def test_hopper_is_compiled_for_its_proxy_and_says_so(tmp_path: Path) -> None:
    found = compiled(int8_conv, "90", tmp_path / "model.onnx")
    assert (found.sm, found.stands_for) == ("89", "90")
    assert "for sm89, which stands for sm90" in found.note


def test_lines_that_are_no_kernels_are_left_out() -> None:
    assert parse_kernels(["Bindings:", "", "Name: a, LayerType: gemm, Inputs: []"])[0].name == "a"
    assert parse_kernels(["nothing of the kind"]) == ()
