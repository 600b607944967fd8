"""The shipped profiles against facts that they were not taken from."""

import re
from functools import cache
from pathlib import Path

import pytest

from advisor.cli.show import show_profiles
from advisor.errors import ProfileError
from advisor.profiles.loader import list_profiles, load_profile, profile_names
from advisor.profiles.parse import parse_profile
from advisor.profiles.roofline import effective_compute
from advisor.profiles.schema import Figure, Profile
from advisor.profiles.units import select_unit
from advisor.targets.platforms import shortfall
from advisor.targets.registry import runtime_names

WANTED = (
    *("p100", "v100", "t4", "a10", "a100-40gb", "a100-80gb", "l4", "l40s", "h100-sxm"),
    *("rtx-3090", "rtx-4090", "rtx-5090", "h100-pcie", "h200", "b200"),
    *("jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin"),
    *("m1", "m1-pro", "m1-max", "m2", "m2-pro", "m2-max", "m3", "m3-pro", "m3-max"),
    *("m4", "m4-pro", "m4-max", "a15", "a16", "a17-pro", "a18-pro"),
    *("cascade-lake", "ice-lake", "sapphire-rapids", "alder-lake", "zen4", "zen5", "mi300x"),
    *("cortex-a53", "cortex-a57", "cortex-a72", "cortex-a76", "cortex-a78"),
    *("cortex-x1", "cortex-x3", "neoverse-n1", "neoverse-v1", "neoverse-v2"),
    *("raspberry-pi-4", "raspberry-pi-5", "adreno-x1", "mali-g610", "hexagon"),
    *("tpu-v4", "tpu-v5e", "tpu-v5p", "tpu-v6e", "edge-tpu"),
)


@cache
def profile_of(name: str) -> Profile:
    return load_profile(name)


def peak(name: str, dtype: str, unit: str | None = None) -> float:
    """Operations per second of a dtype that the profile itself has, on the units plans use."""
    profile = profile_of(name) if unit is None else select_unit(profile_of(name), unit)
    return max(entry.ops_per_s.value for entry in profile.offers if entry.dtype == dtype)


def bandwidth(name: str) -> float:
    return profile_of(name).memory.bandwidth_bytes_per_s.value


def has(name: str, dtype: str) -> bool:
    return dtype in profile_of(name).dtypes


@pytest.mark.parametrize("name", WANTED)
def test_the_catalogue_has_it(name: str) -> None:
    profile = profile_of(name)
    assert profile.runtime in runtime_names()
    assert profile.title
    assert profile.vendor
    assert profile.family


def test_everything_is_wanted_and_families_hold_one_vendor_each() -> None:
    assert {profile_of(name).name.partition(":")[0] for name in WANTED} == set(profile_names())
    vendors: dict[str, set[str]] = {}
    for profile in list_profiles():
        vendors.setdefault(profile.family, set()).add(profile.vendor)
    assert all(len(found) == 1 for found in vendors.values()), vendors


@pytest.mark.parametrize(
    ("alias", "name", "units", "dtype", "ops_per_s"),
    [
        ("hexagon", "snapdragon-x-elite:npu+cpu", ("cpu", "npu"), "int8", 45e12),
        ("Adreno-X1", "snapdragon-x-elite:gpu", ("gpu",), "float32", 4.6e12),
        ("mali-g610", "rk3588:gpu", ("gpu",), "float16", 1024e9),
    ],
)
def test_names_of_units_are_those_units(
    alias: str, name: str, units: tuple[str, ...], dtype: str, ops_per_s: float
) -> None:
    profile = load_profile(alias)
    assert (profile.name, profile.units) == (name, units)
    assert effective_compute(profile, dtype).ops_per_s == ops_per_s
    assert load_profile(profile.name) == profile  # as a plan names it
    with pytest.raises(ProfileError, match=f"one compute unit already: {name.replace('+', '.')}"):
        load_profile(f"{alias}:cpu")
    listing = show_profiles()
    row = next(row for row in listing.rows if row[1] == name.partition(":")[0])
    assert f"{alias.lower()} ({name.partition(':')[2]})" in row[3]


def test_an_alias_of_a_unit_that_is_not_there_is_refused() -> None:
    text = (Path(__file__).parents[2] / "profiles" / "rk3588.toml").read_text(encoding="utf-8")
    wrong = text.replace('mali-g610 = "gpu"', 'mali-g610 = "tpu"')
    with pytest.raises(
        ProfileError, match=r"rk\.toml: unit_aliases\.mali-g610: .*'tpu'.*cpu, gpu, npu"
    ):
        parse_profile(wrong, "rk.toml", load_profile)


def evaluated(says: str) -> float:
    """The value of the formula behind the last colon of a derived figure's words."""
    formula = re.sub(r"(?<=\d) x |(?<=\)) x |(?<=[a-z]) x ", " * ", says.rpartition(": ")[2])
    formula = re.sub(r"(?<![\d.])[A-Za-z][\w-]*|,.*", " ", formula)
    assert re.fullmatch(r"[\d.e\s*/+()-]+", formula), says
    return float(eval(formula, {"__builtins__": {}}))  # numbers and arithmetic signs only


@pytest.mark.parametrize("name", profile_names())
def test_derived_numbers_are_what_their_formula_gives(name: str) -> None:
    profile = profile_of(name)
    memory = profile.memory
    figures: list[Figure] = [entry.ops_per_s for entry in profile.compute]
    for figure in (*figures, memory.capacity_bytes, memory.bandwidth_bytes_per_s):
        if figure.origin == "derived":
            assert evaluated(figure.says) == pytest.approx(figure.value, rel=5e-3), figure.says


TENSOR_CORES = {
    # streaming multiprocessors, dense float16 operations per cycle in each, boost clock in GHz
    "v100": (80, 1024, 1.53),
    "t4": (40, 1024, 1.59),
    "a10": (72, 1024, 1.695),
    "a100": (108, 2048, 1.41),
    "l4": (58, 1024, 2.04),
    "l40s": (142, 1024, 2.49),
    "rtx-3090": (82, 1024, 1.695),
    "rtx-4090": (128, 1024, 2.52),
    "rtx-5090": (170, 1024, 2.407),
    "h100": (132, 4096, 1.83),
    "h100-pcie": (114, 4096, 1.62),
    "h200": (132, 4096, 1.83),
}


@pytest.mark.parametrize("name", TENSOR_CORES)
def test_tensor_cores_follow_from_multiprocessors_and_clock(name: str) -> None:
    count, per_cycle, clock = TENSOR_CORES[name]
    assert peak(name, "float16") == pytest.approx(count * per_cycle * clock * 1e9, rel=0.02)


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in TENSOR_CORES if name != "v100"),
        *("b200", "mi300x", "jetson-agx-orin", "jetson-orin-nx", "jetson-orin-nano"),
    ],
)
def test_int8_is_twice_float16_on_matrix_cores(name: str) -> None:
    assert peak(name, "int8") / peak(name, "float16") == pytest.approx(2, rel=0.02)


def test_older_gpus_show_that_int8_gains_nothing() -> None:
    for name in ("p100", "v100"):
        assert not has(name, "int8")
        used = effective_compute(profile_of(name), "int8")
        assert (used.dtype, used.ops_per_s) == ("float16", peak(name, "float16"))
        assert shortfall("sm75", profile_of(name).platform)
    assert peak("p100", "float16") == pytest.approx(2 * peak("p100", "float32"))


def test_generations_of_data_center_gpus_are_in_order() -> None:
    order = ("p100", "v100", "a100", "h100", "b200")
    rates = [peak(name, "float16") for name in order]
    assert rates == sorted(rates)
    assert peak("v100", "float16") > peak("t4", "float16")
    assert peak("h100", "float16") > peak("h100-pcie", "float16") > peak("a100", "float16")
    by_memory = ("l4", "t4", "a10", "p100", "v100", "a100-40gb", "a100", "h100", "h200", "b200")
    widths = [bandwidth(name) for name in by_memory]
    assert widths == sorted(widths)


def test_float8_and_fp4_are_where_the_architecture_has_them() -> None:
    with_float8 = {"l4", "l40s", "rtx-4090", "rtx-5090", "h100", "h100-pcie", "h200", "b200"}
    gpus = [each.name for each in list_profiles() if each.vendor == "NVIDIA"]
    assert {name for name in gpus if has(name, "float8_e4m3")} == with_float8
    assert {name for name in gpus if has(name, "fp4")} == {"rtx-5090", "b200"}
    for name in gpus:
        sm = int(profile_of(name).platform["sm"])
        assert has(name, "float8_e4m3") is (sm >= 89)
        assert has(name, "bfloat16") is (sm >= 80)


@pytest.mark.parametrize(
    ("name", "bits", "gigatransfers"),
    [
        ("p100", 4096, 1.43),
        ("v100", 4096, 1.754),
        ("t4", 256, 10.0),
        ("a10", 384, 12.5),
        ("a100-40gb", 5120, 2.43),
        ("a100", 5120, 3.186),
        ("h100", 5120, 5.23),
        ("l4", 192, 12.5),
        ("l40s", 384, 18.0),
        ("rtx-3090", 384, 19.5),
        ("rtx-4090", 384, 21.0),
        ("rtx-5090", 512, 28.0),
        ("jetson-agx-orin", 256, 6.4),
        ("jetson-orin-nx", 128, 6.4),
        ("jetson-orin-nano", 128, 4.266),
        ("mi300x", 8192, 5.2),
        ("m1-pro", 256, 6.4),
        ("m1-max", 512, 6.4),
        ("m2", 128, 6.4),
        ("m2-pro", 256, 6.4),
        ("m2-max", 512, 6.4),
        ("m3", 128, 6.4),
        ("m3-pro", 192, 6.4),
        ("m3-max", 512, 6.4),
        ("m4", 128, 7.5),
        ("m4-pro", 256, 8.533),
        ("m4-max", 512, 8.533),
        ("a16", 64, 6.4),
        ("a18-pro", 64, 7.5),
        ("cortex-a57", 64, 3.2),
        ("snapdragon-x-elite", 128, 8.448),
        ("neoverse-v1", 512, 4.8),
    ],
)
def test_bandwidth_follows_from_bus_and_transfers(
    name: str, bits: int, gigatransfers: float
) -> None:
    assert bandwidth(name) == pytest.approx(bits / 8 * gigatransfers * 1e9, rel=0.03)


@pytest.mark.parametrize(
    ("name", "arrays", "side", "clock"),
    [
        ("tpu-v4", 8, 128, 1.05),
        ("tpu-v5e", 4, 128, 1.5),
        ("tpu-v5p", 8, 128, 1.75),
        ("tpu-v6e", 4, 256, 1.75),
    ],
)
def test_tpus_follow_from_their_systolic_arrays(
    name: str, arrays: int, side: int, clock: float
) -> None:
    assert peak(name, "bfloat16") == pytest.approx(arrays * side**2 * 2 * clock * 1e9, rel=0.01)


def test_mi300x_follows_from_its_compute_units() -> None:
    assert peak("mi300x", "float16") == pytest.approx(304 * 2048 * 2.1e9, rel=0.01)


@pytest.mark.parametrize(
    ("ratio", "names"),
    [
        (2, ("cortex-a57", "cortex-a72", "raspberry-pi-4")),  # Armv8.0: widening multiplications
        (4, ("cortex-a76", "cortex-a78", "cortex-x1", "neoverse-n1", "rpi5")),  # dot product
        (8, ("cortex-x3", "neoverse-v1", "neoverse-v2")),  # int8 matrix multiplication
        (4, ("cascade-lake", "ice-lake", "alder-lake", "zen4", "zen5")),  # VNNI
        (32, ("sapphire-rapids",)),  # AMX
    ],
)
def test_int8_over_float32_follows_from_the_instructions(
    ratio: int, names: tuple[str, ...]
) -> None:
    for name in names:
        assert peak(name, "int8") / peak(name, "float32") == pytest.approx(ratio), name


def test_cores_without_dot_product_gain_little_and_have_no_half_precision() -> None:
    for name in ("cortex-a53", "cortex-a57", "cortex-a72"):
        assert not has(name, "float16")
        cores = profile_of(name).cores
        assert cores is not None
        assert peak(name, "float32") / cores.value < peak("cortex-a76", "float32") / 4
    used = effective_compute(profile_of("cortex-a53"), "int8")
    assert (used.dtype, used.ops_per_s) == ("float32", peak("cortex-a53", "float32"))


APPLE = [each.name for each in list_profiles() if each.vendor == "Apple"]


@pytest.mark.parametrize("name", APPLE)
def test_apple_chips_have_three_units(name: str) -> None:
    profile = profile_of(name)
    assert {entry.unit for entry in profile.compute} == {"cpu", "gpu", "npu"}
    assert profile.units == ("npu", "gpu")
    assert effective_compute(profile, "float16").unit == "npu"
    assert effective_compute(profile, "float32").unit == "gpu"
    for unit in ("cpu", "gpu", "npu"):
        alone = load_profile(f"{name}:{unit}")
        assert effective_compute(alone, "float16").unit == unit
        if unit != "npu":  # a unit without the Neural Engine has no wait for it, and its own shares
            assert alone.overhead.dispatch_s is None
            assert alone.efficiency != profile.efficiency


def test_only_recent_neural_engines_gain_from_int8() -> None:
    gaining = {name for name in APPLE if has(name, "int8")}
    assert gaining == {"a17-pro", "a18-pro", "m4", "m4-pro", "m4-max"}
    for name in gaining:
        assert peak(name, "int8") == 2 * peak(name, "float16")


def test_generations_of_apple_chips_are_in_order() -> None:
    for one, other in (
        ("m1", "m2"),
        ("m2", "m3"),
        ("m3", "m4"),
        ("a15", "a16"),
        ("a16", "a17-pro"),
    ):
        assert peak(one, "float16", "npu") < peak(other, "float16", "npu")
    for name in ("m1", "m2", "m3", "m4"):
        sizes = [f"{name}{suffix}" for suffix in ("", "-pro", "-max")]
        for of in (bandwidth, lambda each: peak(each, "float32", "gpu")):
            assert [of(each) for each in sizes] == sorted(of(each) for each in sizes)


def test_units_that_only_their_own_compilers_reach_are_not_the_default() -> None:
    for name in ("rk3588", "snapdragon-x-elite"):
        profile = profile_of(name)
        assert profile.units == ("cpu",)
        both = load_profile(f"{name}:npu+cpu")
        assert (both.name, both.units) == (f"{name}:npu+cpu", ("cpu", "npu"))
        assert effective_compute(both, "int8").unit == "npu"
        assert effective_compute(both, "float32").unit == "cpu"
