"""Capability data of the runtimes, its loader, and the registry."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from advisor.errors import MissingDependencyError, MissingEmitterError, UsageError
from advisor.formats import scheme_named
from advisor.passes.graph import Layer
from advisor.targets import registry
from advisor.targets.capability import (
    Capability,
    DynamicRules,
    capability_names,
    load_capability,
)
from advisor.targets.capability_toml import parse_capability
from advisor.targets.support_page import render_support_page

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]

SHAPES = {
    "linear": (64, 256),
    "conv1d": (32, 64, 3),
    "conv2d": (32, 64, 3, 3),
    "embedding": (1000, 256),
    "matmul": (),
}


def layer(op: str, shape: tuple[int, ...] | None = None, frozen: str | None = None) -> Layer:
    return Layer(
        name="layer",
        op=op,
        weight="layer.weight",
        weight_shape=SHAPES[op] if shape is None else shape,
        bias=None,
        input="x",
        output="y",
        frozen=frozen,
    )


def accepted(runtime: str, op: str, scheme: str, platform: dict[str, str] | None = None) -> bool:
    capability = load_capability(runtime)
    return capability.support(layer(op), scheme_named(scheme), platform).ok


def reason(runtime: str, op: str, scheme: str, platform: dict[str, str] | None = None) -> str:
    support = load_capability(runtime).support(layer(op), scheme_named(scheme), platform)
    assert not support.ok
    return support.reason


# The data


def test_every_runtime_of_the_product_is_described() -> None:
    assert capability_names() == ("coreai", "coreml", "onnxruntime", "tensorrt", "tflite", "xla")


@pytest.mark.parametrize("name", capability_names())
def test_every_file_parses_and_every_fact_has_a_source(name: str) -> None:
    capability = load_capability(name)
    assert capability.name == name
    assert capability.schemes
    for key, entry in capability.schemes.items():
        assert entry.scheme == key
        assert "measured" in entry.source or "https://" in entry.source
        assert entry.ops
    for note in capability.notes:
        assert "measured" in note or "https://" in note
    assert all("(measured" in why or "https://" in why for why in capability.refused.values())


@pytest.mark.parametrize("name", capability_names())
def test_every_runtime_takes_float32_and_refuses_with_a_reason(name: str) -> None:
    capability = load_capability(name)
    assert capability.support(layer("linear"), scheme_named("fp32")).ok
    ternary = capability.support(layer("linear"), scheme_named("ternary"))
    assert (ternary.ok, ternary.reason) == (False, f"{capability.title} has no ternary")


def test_a_capability_is_read_once() -> None:
    assert load_capability("tflite") is load_capability("tflite")


@pytest.mark.parametrize(
    ("op", "schemes"),
    [
        ("linear", "fp32 fp16 w8a8 w8 w8-g32 w8-g64 w8-g128 w4-g32 w4-g64 w4-g128 w2-g32 w2-g128"),
        ("linear", "w8a8-dynamic w8a8-dynamic-g32 w8a8-dynamic-g128"),
        ("linear", "w4a8-dynamic-g32 w4a8-dynamic-g64 w4a8-dynamic-g128"),
        ("conv2d", "fp32 fp16 w8a8 w8 w8-g32 w8-g64 w4-g32 w4-g64 w2-g32 w2-g64"),
        ("conv1d", "fp32 fp16 w8a8 w8 w8-g32 w4-g64 w2-g32"),
        ("embedding", "fp32 fp16 w8 w4-g32 w4-g64 w4-g128 w2-g32 w2-g64 w2-g128"),
    ],
)
def test_onnxruntime_takes_what_was_measured(op: str, schemes: str) -> None:
    for scheme in schemes.split():
        assert accepted("onnxruntime", op, scheme), scheme


@pytest.mark.parametrize(
    ("op", "scheme"),
    [
        ("linear", "bf16"),
        ("linear", "w4"),
        ("linear", "w4-g16"),
        ("linear", "w4a8-dynamic"),
        ("linear", "w4a8-dynamic-g16"),
        ("conv2d", "w8a8-dynamic"),
        ("embedding", "w4a8-dynamic-g32"),
        ("embedding", "w8a8"),
        ("embedding", "w8-g32"),
    ],
)
def test_onnxruntime_refuses_the_rest(op: str, scheme: str) -> None:
    assert not accepted("onnxruntime", op, scheme)


def test_litert_looks_four_bits_up_in_even_rows_only() -> None:
    tflite = load_capability("tflite")
    assert tflite.support(layer("embedding", (50, 32)), scheme_named("w4")).ok
    odd = tflite.support(layer("embedding", (50, 33)), scheme_named("w4"))
    assert not odd.ok
    assert odd.reason.endswith("only in rows of even width, and these have 33 numbers")
    assert tflite.support(layer("embedding", (50, 33)), scheme_named("w8")).ok


def test_a_block_must_divide_the_flattened_inputs() -> None:
    ort = load_capability("onnxruntime")
    depthwise = ort.support(layer("conv2d", (64, 1, 3, 3)), scheme_named("w4-g32"))
    assert (depthwise.ok, depthwise.reason) == (False, "block 32 does not divide 9 inputs")
    # 64 x 3 x 3 = 576 = 18 x 32 = 9 x 64, and not a multiple of 128
    assert ort.support(layer("conv2d"), scheme_named("w4-g64")).ok
    assert not ort.support(layer("conv2d"), scheme_named("w4-g128")).ok
    assert ort.support(layer("embedding", (1, 32)), scheme_named("w4-g32")).ok
    assert ort.support(layer("conv2d", (64, 1, 3, 3)), scheme_named("w8")).ok


def test_onnxruntime_static_rules() -> None:
    static = load_capability("onnxruntime").static
    assert static is not None
    assert (static.dtype, static.symmetric) == ("uint8", False)
    assert set(static.quantized_output) == set(static.int32_bias) == {"conv1d", "conv2d"}
    assert set(static.fused) == {"relu", "hardtanh", "clamp"}
    layout = {"view", "reshape", "flatten", "transpose", "permute", "unsqueeze", "squeeze"}
    assert set(static.followers) == {"add", "max_pool2d", "cat", "pad", *layout}
    assert set(static.shared) == {"max_pool2d", "pad", *layout}


def test_onnxruntime_quantizes_activations_by_tensor_or_by_block() -> None:
    dynamic = load_capability("onnxruntime").dynamic
    assert dynamic["w8a8-dynamic"] == DynamicRules(
        dtype="uint8", symmetric=False, granularity="per-tensor", source="not compared"
    )
    assert dynamic["w8a8-dynamic"].couples_samples
    for bits in (8, 4):
        for block in (32, 64, 128):
            rules = dynamic[f"w{bits}a8-dynamic-g{block}"]
            assert rules.label == f"symmetric int8 per-block {block}"
            assert not rules.couples_samples


def test_what_follows_a_layer_takes_the_weight_of_its_scheme_alone() -> None:
    capability = load_capability("onnxruntime")
    for scheme, alone in (
        ("w8a8", "w8"),
        ("w8a8-dynamic", "w8"),
        ("w4a8-dynamic-g64", "w4-g64"),
        ("w4-g64", "w4-g64"),
        ("fp16", "fp16"),
    ):
        assert capability.taken(layer("embedding"), scheme_named(scheme)) is scheme_named(alone)
        assert capability.taken(layer("linear"), scheme_named(scheme)) is scheme_named(scheme)


def test_storage_only_is_where_the_weight_is_expanded() -> None:
    schemes = load_capability("onnxruntime").schemes
    assert set(schemes["w4-g32"].ops) - set(schemes["w4-g32"].storage_only) == {
        "linear",
        "embedding",
    }
    assert "linear" in schemes["fp16"].storage_only
    assert schemes["w8a8"].storage_only == ()


@pytest.mark.parametrize(
    ("scheme", "ops"),
    [
        ("w8a8", "linear conv2d"),
        ("fp8", "linear conv2d"),
        ("a16a16", "matmul"),
        ("a8a8", "matmul"),
        ("a8a8-fp8", "matmul"),
        ("nvfp4", "linear"),
        ("mxfp8", ""),
        ("w8", "linear"),
        ("w4-g64", "linear"),
        ("w4-g128", "linear"),
        ("w4-g32", ""),
        ("w4-g16", ""),
        ("w4", ""),
        ("w8-g32", ""),
        ("w8a8-dynamic", ""),
        ("fp4-g16", ""),
    ],
)
def test_tensorrt_operators(scheme: str, ops: str) -> None:
    assert [op for op in SHAPES if accepted("tensorrt", op, scheme)] == ops.split()


def test_tensorrt_says_why_a_block_is_refused() -> None:
    assert reason("tensorrt", "linear", "w4-g32").startswith(
        "TensorRT takes int4 blocks of 64 or 128 only (https://docs.nvidia.com/"
    )
    assert reason("tensorrt", "conv2d", "w8") == "TensorRT runs w8 only on linear"


def test_tensorrt_has_float4_from_blackwell_on_and_says_why_not_mxfp8() -> None:
    assert accepted("tensorrt", "linear", "nvfp4", {"sm": "120"})
    assert "needs sm100" in reason("tensorrt", "linear", "nvfp4", {"sm": "90"})
    assert "expands it to float16" in reason("tensorrt", "linear", "mxfp8", {"sm": "120"})


def test_tensorrt_is_symmetric_with_a_float_bias() -> None:
    tensorrt = load_capability("tensorrt")
    assert tensorrt.static is not None
    assert (tensorrt.static.dtype, tensorrt.static.symmetric) == ("int8", True)
    assert tensorrt.static.int32_bias == ()
    assert not any(entry.zero_points for entry in tensorrt.schemes.values())


def test_tflite_rules() -> None:
    tflite = load_capability("tflite")
    assert tflite.static is not None
    assert (tflite.static.dtype, tflite.static.symmetric) == ("int8", False)
    assert {"add", "mul", "mean", "cat", "pad"} <= set(tflite.static.followers)
    # Only the arithmetic followers have an output scale of their own, some of them a fixed one.
    means = {"mean", "adaptive_avg_pool2d"}
    fixed = {"sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0), "hardsigmoid": (1 / 255, -128)}
    own = set(tflite.static.followers) - set(tflite.static.shared)
    assert own == {"add", "sub", "mul"} | means | fixed.keys()
    for operator, (scale, zero_point) in fixed.items():
        found = tflite.static.fixed_output(operator)
        assert found is not None
        assert (found.params("int8").scale, found.zero_point) == (
            float(np.float32(scale)),
            zero_point,
        )
    assert tflite.static.fixed_output("add") is None
    assert set(tflite.dynamic) == {"w8a8-dynamic", "w4a8-dynamic", "w4a8-dynamic-g32"}
    assert {rules.label for rules in tflite.dynamic.values()} == {"asymmetric int8 per-row"}
    assert accepted("tflite", "linear", "w4a8-dynamic-g32")
    assert not accepted("tflite", "linear", "w4a8-dynamic-g64")
    assert "w4a8-dynamic-g32" in reason("tflite", "linear", "w4-g32")


def test_scales_are_stored_as_the_runtime_stores_them() -> None:
    tflite = load_capability("tflite")
    assert tflite.scale_dtype_of(scheme_named("w8")) == "float32"
    assert tflite.scale_dtype_of(scheme_named("w4a8-dynamic-g32")) == "float16"
    assert tflite.block_scale_rounding == "bfloat16"
    assert load_capability("coreml").scale_dtype_of(scheme_named("w4-g32")) == "float16"
    assert load_capability("onnxruntime").block_scale_rounding == "float32"


def test_xla_offers_bfloat16_and_int8() -> None:
    for scheme in ("bf16", "w8a8", "w8a8-dynamic"):
        assert accepted("xla", "linear", scheme)
    assert not accepted("xla", "linear", "fp16")


def test_a_frozen_layer_takes_floats_only() -> None:
    ort = load_capability("onnxruntime")
    frozen = layer("linear", frozen="the weight is used by another operator")
    assert ort.support(frozen, scheme_named("fp16")).ok
    refusal = ort.support(frozen, scheme_named("w8"))
    assert refusal.reason == "the weight is used by another operator"


def test_known_device_traps_are_in_the_data() -> None:
    notes = "\n".join(load_capability("coreml").notes)
    for number in (2688, 2716, 2114, 2514, 929, 1294):
        assert f"github.com/apple/coremltools/issues/{number}" in notes or f"pull/{number}" in notes
    assert "accuracy level 0" in "\n".join(load_capability("onnxruntime").notes)


# Platforms


COREML_MINIMUMS = {
    15: ("fp32", "fp16"),
    16: ("w8", "lut1", "lut2", "lut4", "lut6", "lut8"),
    17: ("w8a8",),
    18: (
        *("w4", "w4-g16", "w4-g32", "w4-g64", "w8-g32", "lut3"),
        *("lut2-c16", "lut3-c16", "lut4-c16", "lut4-i8", "lut6-i8"),
    ),
}
MACOS = {14: 11, 15: 12, 16: 13, 17: 14, 18: 15, 26: 26}


def test_coreml_minimums() -> None:
    for minimum, schemes in COREML_MINIMUMS.items():
        for scheme in schemes:
            for ios, macos in MACOS.items():
                expected = ios >= minimum
                assert accepted("coreml", "linear", scheme, {"ios": str(ios)}) is expected
                assert accepted("coreml", "linear", scheme, {"macos": str(macos)}) is expected
    listed = {scheme for schemes in COREML_MINIMUMS.values() for scheme in schemes}
    assert listed == set(load_capability("coreml").schemes)


def test_a_refusal_names_both_versions() -> None:
    ios = reason("coreml", "linear", "w4-g32", {"ios": "17"})
    assert ios == "w4-g32 needs iOS18, the profile has iOS17"
    macos = reason("coreml", "linear", "w4-g32", {"macos": "13"})
    assert macos == "w4-g32 needs macOS15, the profile has macOS13"
    sm = reason("tensorrt", "linear", "fp8", {"compute_capability": "sm80"})
    assert sm == "fp8 needs sm89, the profile has sm80"


def test_both_apple_systems_must_be_new_enough() -> None:
    assert accepted("coreml", "linear", "w4-g32", {"ios": "18", "macos": "15"})
    assert not accepted("coreml", "linear", "w4-g32", {"ios": "18", "macos": "14"})
    assert not accepted("coreml", "linear", "w4-g32", {"ios": "17.4", "macos": "15"})


@pytest.mark.parametrize(
    ("key", "version", "ok"),
    [
        ("sm", "90", True),
        ("sm", "75", False),
        ("compute_capability", "sm89", True),
        ("compute_capability", "sm_120", True),
        ("compute_capability", "sm90a", True),
        ("compute_capability", "8.6", False),
        ("compute_capability", "12.0", True),
    ],
)
def test_compute_capability_is_a_number(key: str, version: str, ok: bool) -> None:
    assert accepted("tensorrt", "linear", "fp8", {key: version}) is ok


def test_minimums_of_no_machine_are_not_compared() -> None:
    assert load_capability("onnxruntime").schemes["w2-g32"].minimum == "opset 25"
    assert accepted("onnxruntime", "linear", "w2-g32", {"macos": "12", "sm": "75"})
    assert accepted("coreml", "linear", "w4-g32", {"sm": "75"})
    assert accepted("coreml", "linear", "w4-g32")


def test_products_of_activations_need_vnni_on_x86() -> None:
    assert accepted("onnxruntime", "matmul", "a8a8")
    assert accepted("onnxruntime", "matmul", "a8a8", {"vnni": "1"})
    found = reason("onnxruntime", "matmul", "a8a8", {"vnni": "0"})
    assert found.startswith("a8a8 needs VNNI: without it")


@pytest.mark.parametrize(
    ("platform", "message"),
    [
        ({"compute_capabilty": "sm80"}, "unknown platform key 'compute_capabilty'; known keys: sm"),
        ({"ios": "new"}, "ios: cannot read the version 'new'"),
        ({"ios": ""}, "ios: cannot read the version ''"),
    ],
)
def test_unreadable_platforms_are_errors(platform: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        accepted("coreml", "linear", "w4-g32", platform)


def test_unreadable_vnni() -> None:
    with pytest.raises(UsageError, match="vnni: cannot read the version 'yes'; write it like '0'"):
        accepted("onnxruntime", "matmul", "a8a8", {"vnni": "yes"})


def test_unreadable_compute_capability() -> None:
    with pytest.raises(UsageError, match="sm: cannot read the version 'hopper'; write it"):
        accepted("tensorrt", "linear", "fp8", {"sm": "hopper"})


# The loader


GOOD = """
name = "demo"
title = "Demo"
version = "1"
emitter = false
float_dtype = "float32"
scale_dtype = "float32"

[[scheme]]
names = ["fp32"]
ops = ["linear", "conv2d"]
source = "measured"

[[scheme]]
names = ["w8a8"]
ops = ["linear"]
minimum = "iOS17"
source = "measured"

[static]
dtype = "int8"
symmetric = true
quantized_output = []
int32_bias = []
source = "measured"
"""


def test_a_small_file_is_enough() -> None:
    demo = parse_capability(GOOD, name="demo")
    assert demo.schemes["w8a8"].minimum == "iOS17"
    assert demo.block_scale_dtype == "float32"
    assert demo.support(layer("conv2d"), scheme_named("w8a8")).reason == (
        "Demo runs w8a8 only on linear"
    )


def test_a_runtime_may_have_dropped_old_devices() -> None:
    text = 'minimum = "sm75"\nminimum_source = "its release notes"' + GOOD
    demo = parse_capability(text, name="demo")
    assert demo.outdated({"sm": "75"}) == demo.outdated({}) == ""
    said = "Demo 1 needs sm75, the profile has sm70 (its release notes)"
    assert demo.outdated({"compute_capability": "7.0"}) == said
    assert demo.warnings({"fp32"}, (), {"sm": "75"}) == demo.warnings({"fp32"}, ()) == ()
    assert demo.warnings({"fp32"}, (), {"sm": "70"}) == (
        f"cannot be compiled for this device: {said}",
    )


def test_ragged_blocks_need_not_divide() -> None:
    text = GOOD + '[[scheme]]\nnames = ["w4-g32"]\nops = ["linear"]\nragged = true\nsource = "m"\n'
    demo = parse_capability(text, name="demo")
    assert demo.support(layer("linear", (4, 33)), scheme_named("w4-g32")).ok


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["w8a8"]', '["w8a9"]', r"scheme\[1\].names\[0\]: unknown scheme 'w8a9'; did you mean"),
        (
            '"linear", "conv2d"',
            '"linear", "conv2"',
            r"demo.toml: scheme\[0\].ops\[1\]: unknown operator 'conv2'; did you mean .*conv2d",
        ),
        ('"linear", "conv2d"', '"linear", "zzz"', r"ops\[1\]: unknown operator 'zzz'; known: lin"),
        ('"linear", "conv2d"', "", r"scheme\[0\].ops: must not be empty"),
        ('"linear", "conv2d"', '"linear", "linear"', r"ops\[1\]: 'linear' is listed twice"),
        ('"linear", "conv2d"', '"linear", 3', r"scheme\[0\].ops\[1\]: expected text, found 3"),
        (
            '["linear", "conv2d"]',
            '["linear"]\nfollows = ["linear"]',
            r"scheme\[0\].follows\[0\]: 'linear' is among ops",
        ),
        ('["linear", "conv2d"]', '"linear"', r"scheme\[0\].ops: expected a list, found 'linear'"),
        ('["w8a8"]', '["fp32"]', r"scheme\[1\].names\[0\]: scheme 'fp32' is described twice"),
        ('"iOS17"', '"iOS"', r"scheme\[1\].minimum: 'iOS' is not like 'iOS18'"),
        ('title = "Demo"', 'title = "D"\nminimum = "7"', "demo.toml: minimum: '7' is not like"),
        ('title = "Demo"', 'title = "D"\nminimum = "sm75"', "minimum_source: missing field"),
        ("minimum", "minimun", r"scheme\[1\].minimun: unknown field; did you mean minimum"),
        ("symmetric = true", "symmetric = 1", "static.symmetric: expected true or false, found 1"),
        ("symmetric = true\n", "", "demo.toml: static.symmetric: missing field"),
        ('dtype = "int8"', 'dtype = "int7"', "static.dtype: 'int7' is not one of"),
        ("int32_bias = []", 'int32_bias = ["conv2d"]', r"static.int32_bias\[0\]: unknown static"),
        (
            "int32_bias = []",
            'int32_bias = []\nshared = ["cat"]',
            r"static.shared\[0\]: unknown fol",
        ),
        ('"measured"', '" "', r"scheme\[0\].source: must not be empty"),
        ('version = "1"', "", "demo.toml: version: missing field"),
        ('version = "1"', "version = 1", "demo.toml: version: expected text, found 1"),
        (
            'version = "1"',
            'version = "1"\nnotess = []',
            "notess: unknown field; did you mean notes",
        ),
        ('float_dtype = "float32"', 'float_dtype = "int8"', "float_dtype: 'int8' is not one of bf"),
        ('name = "demo"', 'name = "other"', "name: is 'other', but the file describes 'demo'"),
        ('name = "demo"', "name =", "demo.toml: not valid TOML"),
        ("[static]", "[[static]]", "static: expected a table"),
        ("[[scheme]]", "[[schema]]", "demo.toml: scheme: missing field"),
        (
            "[static]",
            '[[fusion]]\nafter = ["conv2d"]\noperators = ["softmax"]\nsource = "x"\n[static]',
            r"fusion\[0\].operators\[0\]: unknown operator 'softmax'",
        ),
        (
            "[static]",
            '[[fusion]]\nafter = ["conv2d"]\noperators = ["relu"]\n[static]',
            r"fusion\[0\].source: missing field",
        ),
        (
            "[static]",
            '[file]\noperator_bytes = "1"\nsource = "x"\n[static]',
            "file.operator_bytes: expected a number",
        ),
        (
            "[static]",
            '[file]\noperator_bytes = 1\nsource = "x"\n[[file.layer]]\nops = ["conv2d"]\n'
            'schemes = ["w9"]\nsource = "x"\n[static]',
            r"file.layer\[0\].schemes\[0\]: unknown scheme 'w9'",
        ),
    ],
)
def test_bad_files_name_the_field(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(UsageError, match=message):
        parse_capability(GOOD.replace(old, new), name="demo")


def test_rules_and_schemes_must_agree() -> None:
    without_rules = GOOD[: GOOD.index("[static]")]
    with pytest.raises(UsageError, match="static: missing table; w8a8 need it"):
        parse_capability(without_rules, name="demo")
    dynamic = '[[scheme]]\nnames = ["w8a8-dynamic"]\nops = ["linear"]\nsource = "m"\n'
    with pytest.raises(UsageError, match="dynamic: missing table; w8a8-dynamic need one"):
        parse_capability(GOOD + dynamic, name="demo")


DYNAMIC_FILE = f"""{GOOD}
[[scheme]]
names = ["w8a8-dynamic", "w4a8-dynamic-g32"]
ops = ["linear"]
source = "measured"

[[dynamic]]
schemes = ["w8a8-dynamic"]
dtype = "int8"
symmetric = true
granularity = "per-row"
source = "measured"

[[dynamic]]
schemes = ["w4a8-dynamic-g32"]
dtype = "int8"
symmetric = true
granularity = "per-block"
source = "measured"
"""


def test_a_block_of_activations_is_the_weight_s() -> None:
    found = parse_capability(DYNAMIC_FILE, name="demo").dynamic
    assert found["w8a8-dynamic"].label == "symmetric int8 per-row"
    assert found["w4a8-dynamic-g32"].block == 32


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"per-row"', '"row"', r"dynamic\[0\]\.granularity: 'row' is not one of per-block, per-ro"),
        ('"per-row"', '"per-block"', r"schemes\[0\]: the weights of w8a8-dynamic have no blocks"),
        (
            's = ["w8a8-dynamic"]',
            's = ["w8a8"]',
            r"dynamic\[0\]\.schemes\[0\]: unknown dynamic sch",
        ),
        ('s = ["w8a8-dynamic"]', "s = []", r"dynamic\[0\]\.schemes: must not be empty"),
        (
            's = ["w8a8-dynamic"]',
            's = ["w4a8-dynamic-g32"]',
            r"dynamic\[1\]\.schemes\[0\]: scheme 'w4a8-dynamic-g32' is described twice",
        ),
        (
            'e = "int8"\nsymmetric = true\ngranularity = "per-row"',
            'e = "uint8"\nsymmetric = true\ngranularity = "per-row"',
            r"dynamic\[0\]\.dtype: symmetric integers are signed",
        ),
        ('"per-row"', '"per-row"\nblock = 4', r"dynamic\[0\]\.block: unknown field"),
        ("[[dynamic]]", "[dynamic]", "Cannot declare|not valid TOML"),
    ],
)
def test_bad_dynamic_tables_name_the_field(old: str, new: str, message: str) -> None:
    assert old in DYNAMIC_FILE
    with pytest.raises(UsageError, match=message):
        parse_capability(DYNAMIC_FILE.replace(old, new), name="demo")


def test_a_scheme_is_not_both_offered_and_refused() -> None:
    refused = '[[refused]]\nnames = ["fp32"]\nreason = "no"\nsource = "m"\n'
    with pytest.raises(UsageError, match=r"refused\[0\].names\[0\]: scheme 'fp32' is described tw"):
        parse_capability(GOOD + refused, name="demo")


@pytest.mark.parametrize(
    "find", [load_capability, registry.capability_named, registry.target_named]
)
def test_unknown_runtimes_get_the_nearest_name(find: Callable[[str], object]) -> None:
    with pytest.raises(UsageError, match="unknown runtime 'onnx-runtime'; did you mean onnxrunt"):
        find("onnx-runtime")
    with pytest.raises(UsageError, match="unknown runtime ''; known runtimes: coreai, coreml"):
        find("")
    with pytest.raises(UsageError, match=r"unknown runtime '\.\./targets/xla'"):
        find("../targets/xla")


# The registry


def test_built_in_targets_are_the_registered_ones_and_have_an_emitter() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"][registry.GROUP] == registry.BUILT_IN
    emitters = {name for name in capability_names() if load_capability(name).emitter}
    assert emitters == set(registry.BUILT_IN)


def test_a_runtime_without_emitter_can_be_planned_for_only() -> None:
    assert registry.capability_named("xla") is load_capability("xla")
    with pytest.raises(MissingEmitterError, match=r"XLA .* can be planned for") as caught:
        registry.target_named("xla")
    assert caught.value.exit_code == 4
    assert isinstance(caught.value, MissingDependencyError)
    assert "onnxruntime" in str(caught.value)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Install a distribution with one module and one ``advisor.targets`` entry point."""

    def install(module: str, source: str, entry: str) -> None:
        (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
        metadata = tmp_path / f"{module}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8"
        )
        (metadata / "entry_points.txt").write_text(
            f"[{registry.GROUP}]\n{entry}\n", encoding="utf-8"
        )
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


TARGET_SOURCE = f"""
from advisor.targets.capability_toml import parse_capability

class Demo:
    capability = parse_capability('''{GOOD}''', name="demo")
    def emit(self, graph, out): ...
    def load(self, folder): ...
    def read_back(self, artifact): ...
    def run(self, artifact, inputs): ...

TARGET = Demo()
"""


def test_another_package_adds_a_runtime(install: Callable[[str, str, str], None]) -> None:
    install("quantadvisor_demo", TARGET_SOURCE, "demo = quantadvisor_demo:TARGET")
    assert registry.runtime_names() == (
        *("coreai", "coreml", "demo", "onnxruntime", "tensorrt", "tflite", "xla"),
    )
    target = registry.target_named("demo")
    assert isinstance(target.capability, Capability)
    assert registry.capability_named("demo").title == "Demo"


def test_another_package_adds_an_emitter(install: Callable[[str, str, str], None]) -> None:
    install("quantadvisor_xla", TARGET_SOURCE, "xla = quantadvisor_xla:TARGET")
    assert registry.target_named("xla").capability.title == "Demo"
    assert registry.capability_named("xla").title == "Demo"


def test_a_built_in_runtime_is_never_replaced(install: Callable[[str, str, str], None]) -> None:
    install("quantadvisor_ort", TARGET_SOURCE, "onnxruntime = quantadvisor_ort:TARGET")
    assert registry.capability_named("onnxruntime").title == "ONNX Runtime"


def test_two_packages_with_one_name(install: Callable[[str, str, str], None]) -> None:
    install("quantadvisor_one", TARGET_SOURCE, "demo = quantadvisor_one:TARGET")
    install("quantadvisor_two", TARGET_SOURCE, "demo = quantadvisor_two:TARGET")
    with pytest.raises(UsageError, match="two packages register the runtime 'demo'"):
        registry.target_named("demo")


def test_a_missing_package_is_named(install: Callable[[str, str, str], None]) -> None:
    install("quantadvisor_demo", "import no_such_runtime", "demo = quantadvisor_demo:TARGET")
    with pytest.raises(MissingDependencyError, match="pip install 'no_such_runtime'") as caught:
        registry.target_named("demo")
    assert not isinstance(caught.value, MissingEmitterError)


@pytest.mark.parametrize("source", ["TARGET = 3", "OTHER = 3"])
def test_an_object_that_is_no_target(install: Callable[[str, str, str], None], source: str) -> None:
    install("quantadvisor_demo", source, "demo = quantadvisor_demo:TARGET")
    with pytest.raises(UsageError, match="is not a target: it has no capability, emit, load"):
        registry.target_named("demo")


# The page, and imports


def test_the_page_matches_the_data() -> None:
    page = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
    assert page == render_support_page(), "run the command in advisor/targets/support_page.py"


def test_the_page_has_every_scheme_of_every_runtime() -> None:
    sections = dict(section.split("\n", 1) for section in render_support_page().split("\n## ")[1:])
    for name in capability_names():
        capability = load_capability(name)
        text = sections[capability.title]
        for scheme in (*capability.schemes, *capability.refused):
            assert f"`{scheme}`" in text
        for note in capability.notes:
            assert note in text


def test_nothing_here_imports_torch() -> None:
    code = (
        "import sys\n"
        "from advisor.targets import registry, support_page\n"
        "support_page.render_support_page()\n"
        "[registry.capability_named(name) for name in registry.runtime_names()]\n"
        "print(*({'torch', 'optuna', 'scipy', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_traps_are_warnings_for_the_units_they_are_about() -> None:
    capability = load_capability("coreml")
    (found,) = capability.warnings({"lut4", "fp16"}, ("npu", "gpu"))
    assert found.startswith("reported for lut4: 4-bit palettized models")
    assert "coremltools/issues/2716" in found
    assert capability.warnings({"lut4"}, ("gpu",)) == ()
    assert "Neural Engine" in capability.warnings({"w4-g32"}, ())[0]
    assert any("/2114" in text for text in capability.warnings({"w8"}, ("cpu",)))
    assert capability.warnings({"fp32", "fp16"}, ()) == ()


def test_a_trap_of_an_unknown_scheme_is_refused() -> None:
    text = GOOD + '\n[[trap]]\nschemes = ["lut4"]\ntext = "fails"\nsource = "nowhere"\n'
    with pytest.raises(UsageError, match=r"trap\[0\]\.schemes\[0\]: unknown scheme of this file"):
        parse_capability(text, name="demo")
