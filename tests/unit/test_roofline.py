import math
from dataclasses import replace

import pytest

from advisor.errors import ProfileError, UsageError
from advisor.formats import SCHEMES
from advisor.passes.graph import Layer
from advisor.profiles.loader import list_profiles, load_profile
from advisor.profiles.roofline import (
    boundary_seconds,
    dispatch_seconds,
    effective_compute,
    energy_parts,
    family_of,
    layer_seconds,
    layer_time,
    sustained_bandwidth,
)
from advisor.profiles.schema import (
    FAMILIES,
    Compute,
    Energy,
    Figure,
    Memory,
    Overhead,
    Profile,
    Unit,
)


def figure(value: float) -> Figure:
    return Figure(value=value, origin="estimate", source="estimate", says="made up")


def compute(unit: Unit, dtype: str, ops_per_s: float) -> Compute:
    return Compute(unit=unit, dtype=dtype, ops_per_s=figure(ops_per_s))


def toy() -> Profile:
    """4 cores, 100 Gop/s float32 and 400 Gop/s int8, 8 of 10 GB/s sustained, 1 us per launch."""
    return Profile(
        name="toy",
        title="Toy",
        aliases=(),
        vendor="Nobody",
        family="Toys",
        kind="cpu",
        runtime="onnxruntime",
        platform={},
        cores=figure(4),
        memory=Memory(
            capacity_bytes=figure(4e9), bandwidth_bytes_per_s=figure(10e9), fraction=figure(0.8)
        ),
        compute=(compute("cpu", "float32", 100e9), compute("cpu", "int8", 400e9)),
        efficiency={family: figure(0.5) for family in FAMILIES},
        overhead=Overhead(launch_s=figure(1e-6)),
    )


def linear(rows: int, *, weight_bytes: float, dtype: str, threads: int | None = None) -> float:
    """Seconds of a 1000 x 1000 linear layer on ``rows`` rows of float32 activations."""
    return layer_seconds(
        toy(),
        op_family="linear",
        macs=rows * 1e6,
        weight_bytes=weight_bytes,
        activation_bytes=rows * 2000 * 4,
        compute_dtype=dtype,
        threads=threads,
    )


def test_compute_bound_by_hand() -> None:
    # 2 * 1e9 operations at 50 Gop/s = 40 ms; 4 MB + 8 MB at 8 GB/s = 1.5 ms.
    assert linear(1000, weight_bytes=4e6, dtype="float32") == pytest.approx(40e-3 + 1e-6)


def test_bandwidth_bound_by_hand() -> None:
    # 2 * 1e6 operations at 50 Gop/s = 40 us; 4_008_000 bytes at 8 GB/s = 501 us.
    assert linear(1, weight_bytes=4e6, dtype="float32") == pytest.approx(501e-6 + 1e-6)
    # int4 weights multiplied in float32: 508_000 bytes take 63.5 us, still above 40 us.
    assert linear(1, weight_bytes=0.5e6, dtype="float32") == pytest.approx(63.5e-6 + 1e-6)


def test_ridge_point() -> None:
    # 50e9 operations per second / 8e9 bytes per second: both roofs meet at 6.25 per byte.
    macs, traffic = 1e9, 2e9 / 6.25
    at_ridge = layer_time(
        toy(),
        op_family="linear",
        macs=macs,
        weight_bytes=traffic,
        activation_bytes=0,
        compute_dtype="float32",
    )
    assert at_ridge.compute_s == pytest.approx(at_ridge.memory_s)
    assert replace(at_ridge, compute_s=at_ridge.compute_s * 1.01).bound == "compute"
    assert replace(at_ridge, memory_s=at_ridge.memory_s * 1.01).bound == "memory"
    assert replace(at_ridge, overhead_s=1.0).bound == "overhead"


def test_int8_is_four_times_faster_only_where_compute_bound() -> None:
    fast = linear(4000, weight_bytes=1e6, dtype="int8") - 1e-6
    slow = linear(4000, weight_bytes=4e6, dtype="float32") - 1e-6
    assert slow / fast == pytest.approx(4.0)
    assert linear(1, weight_bytes=1e6, dtype="int8") == pytest.approx(1_008_000 / 8e9 + 1e-6)


def test_threads_scale_compute_up_to_the_cores() -> None:
    all_cores = linear(1000, weight_bytes=4e6, dtype="float32") - 1e-6
    for threads, share in ((1, 0.25), (2, 0.5), (4, 1.0), (64, 1.0)):
        seconds = linear(1000, weight_bytes=4e6, dtype="float32", threads=threads) - 1e-6
        assert seconds == pytest.approx(all_cores / share)


def test_threads_do_not_touch_an_accelerator() -> None:
    for name, dtype in (("h100", "float16"), ("m2", "float16"), ("tpu-v5e", "bfloat16")):
        profile = load_profile(name)
        one, default = (
            layer_seconds(
                profile,
                op_family="conv",
                macs=1e9,
                weight_bytes=1e6,
                activation_bytes=1e6,
                compute_dtype=dtype,
                threads=threads,
            )
            for threads in (1, None)
        )
        assert one == default


def test_one_core_cannot_draw_the_whole_bandwidth() -> None:
    memory = replace(toy().memory, core_bandwidth_bytes_per_s=figure(3e9))
    profile = replace(toy(), memory=memory)
    drawn = [sustained_bandwidth(profile, threads) for threads in (1, 2, 3, 4, None)]
    assert drawn == pytest.approx([3e9, 6e9, 8e9, 8e9, 8e9])
    assert sustained_bandwidth(toy(), 1) == pytest.approx(8e9)


def test_an_embedding_is_a_gather() -> None:
    # 128 rows of 384 float32: 196_608 bytes read and as many written, at half of 8 GB/s.
    seconds = layer_seconds(
        toy(),
        op_family="embedding",
        macs=0,
        weight_bytes=128 * 384 * 4,
        activation_bytes=128 * 384 * 4,
        compute_dtype="float32",
    )
    assert seconds == pytest.approx(2 * 196_608 / 4e9 + 1e-6)


def test_boundary_by_hand() -> None:
    # Memory: 1e6 * (4 + 1) bytes at 8 GB/s = 625 us; arithmetic: 4e6 at 50 Gop/s = 80 us.
    seconds = boundary_seconds(toy(), elements=1e6, from_element_bytes=4, to_element_bytes=1)
    assert seconds == pytest.approx(625e-6 + 1e-6)
    # One thread: 4e6 operations at 12.5 Gop/s = 320 us, and 2 bytes of traffic = 250 us.
    seconds = boundary_seconds(
        toy(), elements=1e6, from_element_bytes=1, to_element_bytes=1, threads=1
    )
    assert seconds == pytest.approx(320e-6 + 1e-6)
    assert boundary_seconds(
        toy(), elements=0, from_element_bytes=4, to_element_bytes=1
    ) == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("name", "asked", "used", "unit"),
    [
        ("intel-vnni", "int8", "int8", "cpu"),
        ("intel-vnni", "uint8", "int8", "cpu"),
        ("intel-vnni", "int4", "int8", "cpu"),
        ("intel-vnni", "float16", "float32", "cpu"),
        ("intel-vnni", "float8_e4m3", "float32", "cpu"),
        ("m2", "int8", "float16", "npu"),  # no integer gain before M4
        ("m2", "float16", "float16", "npu"),  # the Neural Engine beats the GPU
        ("m2", "bfloat16", "float32", "gpu"),
        ("h100", "int4", "int8", "gpu"),  # Hopper dropped int4
        ("h100", "float8_e4m3", "float8_e4m3", "gpu"),
        ("arm-neon", "float16", "float16", "cpu"),
        ("tpu-v5e", "float8_e4m3", "bfloat16", "tpu"),
    ],
)
def test_the_dtype_really_used(name: str, asked: str, used: str, unit: str) -> None:
    effective = effective_compute(load_profile(name), asked)
    assert (effective.dtype, effective.unit) == (used, unit)
    assert effective.widened is (used != asked and asked != "uint8")


def test_nothing_is_narrowed() -> None:
    whole = load_profile("tpu-v5e")
    narrow = replace(whole, compute=tuple(c for c in whole.compute if c.dtype != "float32"))
    with pytest.raises(ProfileError, match=r"tpu-v5e: no throughput for float32.*int8, bfloat16"):
        effective_compute(narrow, "float32")
    with pytest.raises(ProfileError, match="float16"):
        effective_compute(narrow, "float16")


def test_a_storage_format_is_not_a_compute_dtype() -> None:
    with pytest.raises(UsageError, match="'nf4' is not a compute dtype"):
        effective_compute(toy(), "nf4")


def test_the_compute_dtype_of_every_scheme_is_known() -> None:
    for scheme in SCHEMES.values():
        if scheme.compute != "float":
            assert effective_compute(load_profile("h100"), scheme.compute).ops_per_s > 0


def test_families_of_layers() -> None:
    def layer(op: str, shape: tuple[int, ...], groups: int = 1) -> Layer:
        return Layer(
            name="l",
            op=op,
            weight="l.weight",
            weight_shape=shape,
            bias=None,
            groups=groups,
            input="x",
            output="l",
        )

    assert family_of(layer("linear", (8, 8))) == "linear"
    assert family_of(layer("conv2d", (8, 8, 3, 3))) == "conv"
    assert family_of(layer("conv1d", (8, 4, 3), 2)) == "conv"
    assert family_of(layer("conv2d", (8, 1, 3, 3), 8)) == "depthwise"
    assert family_of(layer("embedding", (100, 8))) == "embedding"
    assert family_of(layer("lstm", (32, 8))) == "linear"
    with pytest.raises(UsageError, match="unknown operator family 'bilinear'; families: linear"):
        family_of(layer("bilinear", (8, 8, 8)))


@pytest.mark.parametrize("amount", [-1.0, math.nan, math.inf])
def test_bad_amounts_are_refused(amount: float) -> None:
    for name in ("macs", "weight_bytes", "activation_bytes"):
        amounts = {"macs": 1.0, "weight_bytes": 1.0, "activation_bytes": 1.0} | {name: amount}
        with pytest.raises(UsageError, match=f"{name}="):
            layer_seconds(
                toy(),
                op_family="linear",
                macs=amounts["macs"],
                weight_bytes=amounts["weight_bytes"],
                activation_bytes=amounts["activation_bytes"],
                compute_dtype="float32",
            )
    with pytest.raises(UsageError, match="elements="):
        boundary_seconds(toy(), elements=amount, from_element_bytes=4, to_element_bytes=1)


@pytest.mark.parametrize("threads", [0, -2])
def test_fewer_than_one_thread_is_refused(threads: int) -> None:
    with pytest.raises(UsageError, match=f"threads={threads}"):
        linear(1, weight_bytes=1, dtype="float32", threads=threads)


def test_energy_only_where_published() -> None:
    energy = Energy(joules_per_byte=figure(20e-12), joules_per_op={"int8": figure(0.2e-12)})
    profile = replace(toy(), energy=energy)
    parts = energy_parts(profile, macs=1e6, traffic_bytes=1e6, compute_dtype="int8")
    assert parts is not None
    assert parts.compute_j == pytest.approx(2e6 * 0.2e-12)
    assert parts.memory_j == pytest.approx(1e6 * 20e-12)
    assert energy_parts(profile, macs=1, traffic_bytes=1, compute_dtype="float32") is None
    assert energy_parts(toy(), macs=1, traffic_bytes=1, compute_dtype="int8") is None


def test_published_energies_give_the_sum_by_hand() -> None:
    """Jouppi et al. 2021, table 2, at 7 nm: 0.07 + 0.03 pJ for int8, 350 pJ for 64 bits of HBM2."""
    a100 = load_profile("a100")
    parts = energy_parts(a100, macs=1e9, traffic_bytes=8e6, compute_dtype="int8")
    assert parts is not None
    assert parts.joules == pytest.approx(1e9 * 0.10e-12 + 1e6 * 350e-12)
    # Six bfloat16 passes of 0.21 + 0.38 pJ.
    parts = energy_parts(load_profile("tpu-v4"), macs=1, traffic_bytes=0, compute_dtype="float32")
    assert parts is not None
    assert parts.joules == pytest.approx(6 * 0.59e-12)


def test_dispatch_is_counted_where_known() -> None:
    assert dispatch_seconds(load_profile("m2")) == pytest.approx(0.23e-3)
    assert dispatch_seconds(load_profile("h100")) == 0.0


@pytest.mark.parametrize("profile", list_profiles(), ids=lambda profile: profile.name)
def test_every_shipped_profile_costs_every_family(profile: Profile) -> None:
    for family in FAMILIES:
        for dtype in profile.dtypes:
            small, large = (
                layer_seconds(
                    profile,
                    op_family=family,
                    macs=0 if family in ("embedding", "elementwise") else size,
                    weight_bytes=size,
                    activation_bytes=size,
                    compute_dtype=dtype,
                )
                for size in (1e6, 1e9)
            )
            assert 0 < small < large < 60
