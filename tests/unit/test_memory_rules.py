"""What a runtime keeps in memory: the rules, how they are read, and what a layer costs by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from advisor.errors import UsageError
from advisor.formats import scheme_named
from advisor.passes.graph import Layer
from advisor.profiles.cost import LayerCost, Traffic, layer_cost, process_overhead_bytes
from advisor.profiles.loader import load_profile
from advisor.targets.capability import Capability, load_capability
from advisor.targets.capability_toml import parse_capability
from advisor.targets.onnxruntime.onnxfile import LARGE_BYTES
from advisor.targets.rules import MemoryRules, WeightMemory

TEXT = """
name = "toy"
title = "Toy"
version = "1"
emitter = false
float_dtype = "float32"
scale_dtype = "float32"

[[scheme]]
names = ["fp32", "fp16"]
ops = ["linear"]
storage_only = ["linear"]
source = "made up"

[memory]
runtime_bytes = 1_000_000
operator_bytes = 500.5
activations = 1.5
inside_bytes = 1_000_000
planned = 0.5
unplanned = ["conv2d", "relu"]
absorbed = ["pad"]
source = "made up"

[[memory.weight]]
ops = ["linear"]
schemes = ["fp16"]
resident = 1.25
opening = 3
scratch = 0.5
source = "made up"

[[memory.weight]]
ops = ["linear"]
schemes = ["fp32"]
below = "vnni1"
opening = 2
source = "made up"
"""

LINEAR = Layer(
    name="l",
    op="linear",
    weight="l.weight",
    weight_shape=(64, 256),
    bias=None,
    input="x",
    output="y",
)


def cost(
    scheme: str, capability: Capability, platform: Mapping[str, str] | None = None
) -> LayerCost:
    profile = load_profile("intel-vnni")
    return layer_cost(
        LINEAR,
        scheme_named(scheme),
        Traffic(input_elements=256, output_elements=64),
        capability=capability,
        profile=profile if platform is None else replace(profile, platform=platform),
        threads=1,
    )


def test_rules_are_read() -> None:
    rules = parse_capability(TEXT, name="toy").memory
    assert rules == MemoryRules(
        runtime_bytes=1e6,
        operator_bytes=500.5,
        activations=1.5,
        inside_bytes=1e6,
        planned=0.5,
        unplanned=("conv2d", "relu"),
        absorbed=("pad",),
        source="made up",
        weights=(
            WeightMemory(
                ops=("linear",),
                schemes=("fp16",),
                resident=1.25,
                opening=3.0,
                scratch=0.5,
                source="made up",
            ),
            WeightMemory(
                ops=("linear",),
                schemes=("fp32",),
                opening=2.0,
                below="vnni1",
                source="made up",
            ),
        ),
    )


def test_weights_cost_what_the_rules_say() -> None:
    capability = parse_capability(TEXT, name="toy")
    whole = 64 * 256 * 4
    narrow = cost("fp16", capability)
    assert narrow.size_bytes == whole / 2
    assert narrow.resident_bytes == 1.25 * whole  # expanded, so a multiple of the float weight
    assert narrow.opening_bytes == 3 * whole
    assert narrow.scratch_bytes == whole / 2
    plain = cost("fp32", capability)
    assert (plain.resident_bytes, plain.opening_bytes, plain.scratch_bytes) == (whole, whole, 0)


def test_a_rule_for_older_platforms_holds_on_those_alone() -> None:
    capability = parse_capability(TEXT, name="toy")
    whole = 64 * 256 * 4
    assert cost("fp32", capability, {"vnni": "0"}).opening_bytes == 2 * whole
    assert cost("fp32", capability, {"vnni": "1"}).opening_bytes == whole
    assert cost("fp16", capability, {"vnni": "0"}).opening_bytes == 3 * whole


def test_runtime_that_was_not_measured_keeps_each_weight_once() -> None:
    capability = replace(parse_capability(TEXT, name="toy"), memory=None)
    found = cost("fp16", capability)
    assert found.resident_bytes == found.opening_bytes == 64 * 256 * 4
    assert found.scratch_bytes == 0
    assert process_overhead_bytes(capability, 10, 1e6) == 0


def test_overhead_grows_with_the_operators() -> None:
    capability = parse_capability(TEXT, name="toy")
    assert process_overhead_bytes(capability, 10, 2e6) == 1_005_005


def test_weights_inside_the_file_are_read_with_it() -> None:
    capability = parse_capability(TEXT, name="toy")
    assert process_overhead_bytes(capability, 0, 999_999) == 1_999_999
    assert process_overhead_bytes(capability, 0, 1_000_000) == 1_000_000


def test_the_rule_and_the_writer_agree_on_what_is_inside_a_file() -> None:
    memory = load_capability("onnxruntime").memory
    assert memory is not None
    assert memory.inside_bytes == LARGE_BYTES


def test_onnx_runtimes_rules_are_about_schemes_that_the_layers_take() -> None:
    capability = load_capability("onnxruntime")
    assert capability.memory is not None
    for rule in capability.memory.weights:
        for scheme in rule.schemes:
            assert set(rule.ops) <= set(capability.schemes[scheme].ops), (rule.ops, scheme)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("activations = 1.5", "activations = -1", r"memory\.activations: expected a number"),
        ("activations = 1.5", "activations = true", r"memory\.activations: expected a number"),
        ("activations = 1.5", "activations = inf", r"memory\.activations: expected a number"),
        ("activations = 1.5\n", "", r"memory\.activations: missing field"),
        ('["pad"]', '["padding"]', r"memory\.absorbed\[0\]"),
        ("planned = 0.5", "planned = -0.5", r"memory\.planned: expected a number"),
        ('"vnni1"', '"vnni"', r"memory\.weight\[1\]\.below: 'vnni' is not like"),
        ("opening = 3", "openning = 3", r"memory\.weight\[0\]\.openning: unknown field"),
        ('schemes = ["fp16"]', 'schemes = ["w4"]', r"memory\.weight\[0\]\.schemes\[0\]"),
        ('schemes = ["fp16"]', "schemes = []", r"memory\.weight\[0\]\.schemes: must not be empty"),
    ],
)
def test_mistakes_name_the_field(old: str, new: str, said: str) -> None:
    assert old in TEXT
    with pytest.raises(UsageError, match=said):
        parse_capability(TEXT.replace(old, new, 1), name="toy")
