"""Tiles, starts and operations per element, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from advisor.formats import scheme_named
from advisor.passes.graph import Layer
from advisor.profiles.cost import (
    EXPONENTIAL,
    Traffic,
    filled_share,
    layer_cost,
    plain_parts,
)
from advisor.profiles.loader import load_profile
from advisor.profiles.roofline import (
    effective_compute,
    start_seconds,
    sustained_bandwidth,
    traffic_seconds,
    vector_ops,
)
from advisor.profiles.timeparts import TimeParts
from advisor.targets.capability import load_capability

H100, VNNI = load_profile("h100"), load_profile("intel-vnni")


def layer(op: str, shape: tuple[int, ...], macs: int = 0, groups: int = 1) -> Layer:
    return Layer(
        name="layer",
        op=op,
        weight="layer.weight",
        weight_shape=shape,
        bias=None,
        input="x",
        output="layer",
        macs=macs,
        groups=groups,
    )


@pytest.mark.parametrize(
    ("op", "shape", "multiple", "share"),
    [
        ("linear", (64, 32), 8, 1.0),
        ("linear", (64, 36), 8, 36 / 40),
        ("linear", (1000, 3), 16, 1000 / 1008 * 3 / 16),
        ("conv2d", (64, 3, 7, 7), 8, 3 / 8),
        ("linear", (1000, 3), 1, 1.0),
        ("embedding", (1000, 3), 8, 1.0),
    ],
)
def test_a_unit_fills_its_tiles(
    op: str, shape: tuple[int, ...], multiple: int, share: float
) -> None:
    family = "conv" if op == "conv2d" else op
    assert filled_share(layer(op, shape), family, multiple) == pytest.approx(share)


def test_ragged_layers_take_the_time_of_full_tiles() -> None:
    def seconds(inputs: int) -> TimeParts:
        return layer_cost(
            layer("linear", (4096, inputs), macs=4096 * inputs * 4096),
            scheme_named("fp16"),
            Traffic(input_elements=4096 * inputs, output_elements=4096 * 4096),
            capability=load_capability("tensorrt"),
            profile=H100,
            threads=None,
        ).parts

    assert seconds(4089).compute_s == pytest.approx(seconds(4096).compute_s)


def test_a_product_starts_later_than_it_launches() -> None:
    assert H100.overhead.product_s is not None
    launch, product = H100.overhead.launch_s.value, H100.overhead.product_s.value
    assert [start_seconds(H100, family) for family in ("linear", "conv", "depthwise")] == [
        product
    ] * 3
    assert start_seconds(H100, "elementwise") == start_seconds(H100, "embedding") == launch
    late = replace(H100.overhead.launch_s, value=1e-3)
    slow = replace(H100, overhead=replace(H100.overhead, launch_s=late))
    assert start_seconds(slow, "linear") == 1e-3
    assert start_seconds(VNNI, "linear") == VNNI.overhead.launch_s.value


@pytest.mark.parametrize(("op", "operations"), [("relu", 1), ("exp", EXPONENTIAL)])
def test_elementwise_operators_compute_in_the_slowest_dtype(op: str, operations: int) -> None:
    parts = plain_parts(
        VNNI,
        op=op,
        macs=0,
        elements=1_000_000,
        moved_bytes=0,
        capability=load_capability("onnxruntime"),
        threads=1,
    )
    (peak,) = [each for each in VNNI.compute if each.dtype == VNNI.dtypes[-1]]
    assert VNNI.cores is not None
    rate = peak.ops_per_s.value / VNNI.cores.value * VNNI.efficiency["elementwise"].value
    assert parts.compute_s == pytest.approx(1e6 * operations / rate)
    assert parts.overhead_s == VNNI.overhead.launch_s.value


def test_parts_add_and_scale() -> None:
    parts = TimeParts(compute_s=1.0, overhead_s=0.25) + TimeParts(memory_s=0.5, boundary_s=0.125)
    assert parts.seconds == 1.875
    assert parts.bound == "compute"
    assert (parts * 2.0).memory_s == 1.0
    assert TimeParts(overhead_s=2.0, memory_s=1.0).bound == "overhead"


def test_what_fits_into_the_cache_takes_no_time_of_the_memory() -> None:
    cache = H100.memory.cache_bytes
    assert cache is not None
    bandwidth = sustained_bandwidth(H100)
    assert traffic_seconds(H100, weight_bytes=1e6, activation_bytes=cache.value) == 1e6 / bandwidth
    much = cache.value + 1
    assert traffic_seconds(H100, activation_bytes=much) == much / bandwidth
    assert VNNI.memory.cache_bytes is None
    assert traffic_seconds(VNNI, activation_bytes=1e3) > 0


@pytest.mark.parametrize(
    ("name", "dtype", "rate"),
    [
        ("h100", "float16", 2 * 67e12),  # Tensor Cores are of no use
        ("h100", "float32", 67e12),
        ("intel-vnni", "int8", None),  # vectors are what it has
        ("sapphire-rapids", "int8", 4.0),  # no AMX
    ],
)
def test_depthwise_layers_have_the_peak_of_vectors(
    name: str, dtype: str, rate: float | None
) -> None:
    profile = load_profile(name)
    used = effective_compute(profile, dtype)
    found = vector_ops(profile, used)
    if name == "sapphire-rapids":
        assert rate is not None
        rate *= effective_compute(profile, "float32").ops_per_s
    assert found == pytest.approx(used.ops_per_s if rate is None else rate)
