"""The JSON Schema, inheritance, units, and contradictions inside a profile."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from advisor.cli.app import app
from advisor.errors import ProfileError
from advisor.profiles import loader
from advisor.profiles.consistency import quantities
from advisor.profiles.json_schema import json_schema
from advisor.profiles.loader import load_profile, profile_names
from advisor.profiles.parse import parse_profile
from advisor.profiles.roofline import dispatch_seconds, effective_compute, layer_seconds
from tests.unit.test_profiles import MINIMAL, edited

FOLDER = Path(loader.__file__).parent

BRIEF = """
schema = 1
name = "brief"
like = "toy"
title = "Brief"
vendor = "Nobody"
family = "Toys"
kind = "cpu"
runtime = "tflite"
cores = { value = 2, origin = "published", source = "a", says = "two cores" }
[sources]
a = "Another sheet, https://example.org/brief"
[memory]
capacity_bytes = { value = 2_000_000_000, origin = "published", source = "a", says = "2 GB" }
bandwidth_bytes_per_s = { value = 5e9, origin = "published", source = "a", says = "5 GB/s" }
[[compute]]
unit = "cpu"
dtype = "float32"
ops_per_s = { value = 50e9, origin = "published", source = "a", says = "50 GFLOPS" }
[efficiency]
depthwise = { value = 0.2, origin = "measured", source = "a", says = "timed" }
"""

TWO_UNITS = """
[[compute]]
unit = "gpu"
dtype = "float16"
ops_per_s = { value = 900e9, origin = "published", source = "sheet", says = "900 GFLOPS" }
[by_unit.gpu]
overhead.launch_s = { value = 5e-6, origin = "estimate", says = "assumed" }
overhead.dispatch_s = { value = 1e-4, origin = "estimate", says = "assumed" }
[efficiency]
"""


def toy(_name: str) -> Any:
    return parse_profile(MINIMAL, "toy.toml")


def soc() -> str:
    return edited("[efficiency]\n", TWO_UNITS).replace('kind = "cpu"', 'kind = "soc"')


def test_the_json_schema_beside_the_profiles_is_current() -> None:
    printed = CliRunner().invoke(app, ["profiles", "schema"]).stdout
    assert json.loads(printed) == json_schema()
    committed = (FOLDER / "profile.schema.json").read_text(encoding="utf-8")
    assert committed == printed, (
        "make it again: advisor profiles schema > profiles/profile.schema.json"
    )


@pytest.fixture(scope="module")
def errors_of() -> Callable[[str], list[str]]:
    jsonschema = pytest.importorskip("jsonschema", reason="the independent validator")
    jsonschema.Draft202012Validator.check_schema(json_schema())
    validator = jsonschema.Draft202012Validator(json_schema())

    def errors(text: str) -> list[str]:
        found = validator.iter_errors(tomllib.loads(text))
        return [f"{error.json_path}: {error.message}" for error in found]

    return errors


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_satisfies_the_json_schema(
    name: str, errors_of: Callable[[str], list[str]]
) -> None:
    assert errors_of((FOLDER / f"{name}.toml").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("text", [MINIMAL, BRIEF, soc()])
def test_the_json_schema_takes_what_the_reader_takes(
    text: str, errors_of: Callable[[str], list[str]]
) -> None:
    parse_profile(text, "good.toml", toy)
    assert errors_of(text) == []


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ('title = "Toy"\n', "", "$: 'title'"),
        ('kind = "cpu"', 'kind = "abacus"', "$.kind"),
        ('name = "toy"', 'name = "host"', "$.name"),
        ('vendor = "Nobody"', 'vendor = "Nobody"\ncolour = "red"', "$: Additional"),
        ("value = 10e9", "value = -10e9", "$.memory.bandwidth_bytes_per_s.value"),
        ("value = 10e9", 'value = "10e9"', "$.memory.bandwidth_bytes_per_s.value"),
        ("[cores]\nvalue = 4", "[cores]\nvalue = 2.5", "$.cores.value"),
        ("value = 100e9", "value = 100", "$.compute[0].ops_per_s.value"),
        ('source = "sheet", says = "4 GB"', 'says = "4 GB"', "$.memory.capacity_bytes: 'source'"),
        (
            'linear = { value = 0.5, origin = "estimate", says = "assumed" }\n',
            "",
            "$.efficiency: 'linear'",
        ),
        (
            'fraction = { value = 1.0, origin = "estimate", says = "assumed" }\n',
            "",
            "$.memory: 'fraction'",
        ),
        ('family = "Toys"', 'family = "Toys"\naliases = [1]', "$.aliases[0]"),
    ],
)
def test_the_json_schema_refuses_what_the_reader_refuses(
    old: str, new: str, path: str, errors_of: Callable[[str], list[str]]
) -> None:
    bad = edited(old, new)
    with pytest.raises(ProfileError):
        parse_profile(bad, "bad.toml")
    assert any(error.startswith(path) for error in errors_of(bad)), errors_of(bad)


def test_a_profile_like_another_states_only_what_differs() -> None:
    base, brief = toy(""), parse_profile(BRIEF, "brief.toml", toy)
    assert brief.efficiency["linear"] == base.efficiency["linear"]
    assert brief.efficiency["depthwise"].value == 0.2
    assert brief.overhead == base.overhead
    assert brief.memory.fraction == base.memory.fraction
    assert brief.memory.capacity_bytes.value == 2e9
    assert brief.memory.capacity_bytes.source.startswith("Another sheet")
    assert [entry.ops_per_s.value for entry in brief.compute] == [50e9]


@pytest.mark.parametrize("field", ["capacity_bytes", "bandwidth_bytes_per_s"])
def test_hardware_facts_are_not_inherited(field: str) -> None:
    lines = [line for line in BRIEF.splitlines() if not line.startswith(field)]
    with pytest.raises(ProfileError, match=rf"^brief\.toml: memory\.{field}: missing"):
        parse_profile("\n".join(lines), "brief.toml", toy)


def test_the_other_profile_must_exist(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(BRIEF.replace('like = "toy"', 'like = "h10"'), encoding="utf-8")
    with pytest.raises(ProfileError, match=r"^mine\.toml: like: no profile is named 'h10'"):
        load_profile(path)
    with pytest.raises(ProfileError, match=r"like: 'toy' cannot be looked up here"):
        parse_profile(BRIEF, "brief.toml")
    path.write_text(BRIEF.replace('like = "toy"', 'like = "arm-neon"'), encoding="utf-8")
    assert load_profile(path).overhead == load_profile("arm-neon").overhead


def test_likeness_goes_on_but_not_in_circles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.toml"  # raspberry-pi-4 is itself like arm-neon
    path.write_text(BRIEF.replace('like = "toy"', 'like = "raspberry-pi-4"'), encoding="utf-8")
    assert load_profile(path).overhead == load_profile("arm-neon").overhead
    for name, other in (("one", "two"), ("two", "one")):
        text = BRIEF.replace('name = "brief"\nlike = "toy"', f'name = "{name}"\nlike = "{other}"')
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
    known = {path.stem: path for path in tmp_path.glob("*.toml")}
    monkeypatch.setattr(loader, "_shipped", lambda: known)
    with pytest.raises(ProfileError, match="two is like one is like two: one of them must stand"):
        load_profile("one")


def test_a_unit_alone_has_its_own_figures() -> None:
    from advisor.profiles.units import select_unit

    whole = parse_profile(soc(), "soc.toml")
    assert effective_compute(whole, "float16").unit == "gpu"
    assert effective_compute(whole, "float32").unit == "cpu"
    gpu, cpu = select_unit(whole, "gpu"), select_unit(whole, "cpu")
    assert (gpu.name, gpu.dtypes, gpu.overhead.launch_s.value) == ("toy:gpu", ("float16",), 5e-6)
    assert (dispatch_seconds(gpu), dispatch_seconds(cpu)) == (1e-4, 0.0)
    assert gpu.efficiency == whole.efficiency
    assert effective_compute(cpu, "float16").dtype == "float32"  # what the CPU has, widened
    seconds = [
        layer_seconds(
            unit,
            op_family="linear",
            macs=1e9,
            weight_bytes=0.0,
            activation_bytes=0.0,
            compute_dtype="float16",
        )
        for unit in (cpu, gpu)
    ]
    assert seconds == pytest.approx([2e9 / 50e9 + 1e-6, 2e9 / 450e9 + 5e-6])
    with pytest.raises(ProfileError, match="toy has no unit 'npu'; possible: toy:cpu, toy:gpu"):
        select_unit(whole, "npu")


def test_units_that_plans_do_not_use_cost_nothing() -> None:
    profile = parse_profile(soc().replace("runtime =", 'units = ["cpu"]\nruntime ='), "soc.toml")
    assert profile.dtypes == ("float32",)
    assert effective_compute(profile, "float16").unit == "cpu"


@pytest.mark.parametrize("target", ["m2:gpu", "M2:GPU", "apple-m2:gpu"])
def test_a_target_can_name_one_unit(target: str) -> None:
    chosen = load_profile(target)
    assert (chosen.name, chosen.units) == ("m2:gpu", ("gpu",))
    assert chosen.compute == load_profile("m2").compute


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "value = 10e9",
            "value = 80e9",
            r"memory\.bandwidth_bytes_per_s\.value: 8e\+10 bytes per s",
        ),
        ("10 GB/s", "80 Gb/s, one channel", None),
        ("10 GB/s", "80 Gbit/s", None),
        ("10 GB/s", "10 Gb/s", r"bandwidth_bytes_per_s\.value: 1e\+10 .*1\.25e\+09 \(10 Gb/s\)"),
        ("10 GB/s", "10 Gbps", r"bandwidth_bytes_per_s\.value: .*1\.25e\+09 \(10 Gbps\)"),
        ("10 GB/s", "9.313 GiB/s", None),
        ("10 GB/s", "dual-channel", None),
        ("4 GB", "16 GB", r"memory\.capacity_bytes\.value: 4e\+09 bytes is not .*1\.6e\+10"),
        ("4 GB", "4 GB or 8 GB", None),
        ("100 GFLOPS", "100 TFLOPS", r"compute\[0\]\.ops_per_s\.value: 1e\+11 .*1e\+14 \(100 TF"),
        ("100 GFLOPS", "0.1 TOPS", None),
        ('kind = "cpu"', 'kind = "gpu"', r"^bad\.toml: kind: a gpu needs a throughput .*: cpu"),
        (
            'kind = "cpu"',
            'kind = "cpu"\nunits = ["gpu"]',
            r"^bad\.toml: units\[0\]: no \[\[compute\]\] table is of the gpu; given: cpu",
        ),
        ('kind = "cpu"', 'kind = "cpu"\nunits = ["ane"]', r"units\[0\]: 'ane' is not one of cpu"),
        ("[efficiency]", "[by_unit.gpu]\n[efficiency]", r"by_unit\.gpu: no \[\[compute\]\] table"),
        (
            "[efficiency]",
            '[[compute]]\nunit = "cpu"\ndtype = "int8"\nops_per_s = { value = 400e12, '
            'origin = "estimate", says = "x" }\n[efficiency]',
            r"compute\[1\]\.ops_per_s\.value: 4e\+14 .* less than 256 times",
        ),
        (
            'value = 100e9, origin = "published", source = "sheet", says = "100 GFLOPS"',
            'value = 100e15, origin = "estimate", says = "x"',
            r"compute\[0\]\.ops_per_s\.value: 1e\+17 .*operations per byte are plausible",
        ),
        (
            "capacity_bytes",
            "capacity_byte",
            r"memory\.capacity_byte: .*did you mean capacity_bytes",
        ),
    ],
)
def test_contradictions_are_refused_with_what_is_plausible(
    old: str, new: str, message: str | None
) -> None:
    if message is None:
        parse_profile(edited(old, new), "good.toml")
    else:
        with pytest.raises(ProfileError, match=message):
            parse_profile(edited(old, new), "bad.toml")


def test_quantities_are_read_with_their_units() -> None:
    text = "3,350 GB/s (26.8 Tb/s), 80GB, 819 GBps, 1.5 TiB/s; 1,979 TFLOPS, 26 TOPS; LPDDR4-4267"
    assert list(quantities(text, "bytes").values()) == [80e9]
    rates = [3.35e12, 26.8e12 / 8, 819e9, 1.5 * 2**40]
    assert list(quantities(text, "bytes per second").values()) == pytest.approx(rates)
    assert list(quantities(text, "operations per second").values()) == [1979e12, 26e12]
