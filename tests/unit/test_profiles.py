import importlib.metadata
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from statistics import median
from typing import cast

import pytest

from advisor.errors import ProfileError
from advisor.profiles import loader
from advisor.profiles.loader import list_profiles, load_profile, profile_names
from advisor.profiles.parse import parse_profile
from advisor.profiles.schema import Figure, Profile
from advisor.targets.platforms import shortfall

FOLDER = Path(loader.__file__).parent
SHIPPED = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))

MINIMAL = """
schema = 1
name = "toy"
title = "Toy"
vendor = "Nobody"
family = "Toys"
kind = "cpu"
runtime = "onnxruntime"
[sources]
sheet = "Toy datasheet, https://example.org/toy"
[cores]
value = 4
origin = "published"
source = "sheet"
says = "four cores"
[memory]
capacity_bytes = { value = 4_000_000_000, origin = "published", source = "sheet", says = "4 GB" }
bandwidth_bytes_per_s = { value = 10e9, origin = "published", source = "sheet", says = "10 GB/s" }
fraction = { value = 1.0, origin = "estimate", says = "assumed" }
[[compute]]
unit = "cpu"
dtype = "float32"
ops_per_s = { value = 100e9, origin = "published", source = "sheet", says = "100 GFLOPS" }
[efficiency]
linear = { value = 0.5, origin = "estimate", says = "assumed" }
conv = { value = 0.5, origin = "estimate", says = "assumed" }
depthwise = { value = 0.5, origin = "estimate", says = "assumed" }
embedding = { value = 0.5, origin = "estimate", says = "assumed" }
elementwise = { value = 0.5, origin = "estimate", says = "assumed" }
[overhead]
launch_s = { value = 1e-6, origin = "estimate", says = "assumed" }
"""


def figures(value: object, path: str) -> Iterator[tuple[str, Figure]]:
    """Every figure below ``value`` with its path."""
    if isinstance(value, Figure):
        yield path, value
    elif isinstance(value, dict):
        for key, item in cast("dict[str, object]", value).items():
            yield from figures(item, f"{path}.{key}")
    elif isinstance(value, tuple):
        for index, item in enumerate(cast("tuple[object, ...]", value)):
            yield from figures(item, f"{path}[{index}]")
    elif is_dataclass(value):
        for field in fields(value):
            yield from figures(getattr(value, field.name), f"{path}.{field.name}")


def edited(old: str, new: str) -> str:
    assert MINIMAL.count(old) >= 1
    return MINIMAL.replace(old, new, 1)


def test_the_shipped_profiles_are_there() -> None:
    assert profile_names() == SHIPPED
    assert tuple(profile.name for profile in list_profiles()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_number_of_a_shipped_profile_has_a_source(name: str) -> None:
    found = dict(figures(load_profile(name), name))
    assert len(found) >= 10
    for path, figure in found.items():
        assert figure.says.strip(), path
        if figure.origin == "estimate":
            assert figure.source == "estimate", path
        elif figure.origin == "measured":
            assert (FOLDER.resolve().parent / figure.source.partition(":")[0]).is_file(), path
        else:
            assert "https://" in figure.source, path


def test_what_was_measured_on_one_device_is_an_estimate_for_another() -> None:
    h100, a100 = load_profile("h100"), load_profile("a100")
    pairs = [
        (h100.memory.fraction, a100.memory.fraction),
        (h100.efficiency["conv"], a100.efficiency["conv"]),
    ]
    for known, assumed in pairs:
        assert known.origin == "measured"
        assert assumed.origin == "estimate"
        assert assumed.value == known.value
        assert assumed.says.startswith("as of NVIDIA H100 SXM5 80 GB: ")


def test_measured_figures_of_the_h100_are_those_of_its_run() -> None:
    """Worked out again from the committed timings."""
    run = json.loads((FOLDER.resolve().parent / "benchmarks/nvidia/results/h100.json").read_text())
    profile = load_profile("h100")
    peaks = {entry.dtype: entry.ops_per_s.value for entry in profile.compute}
    rates = {
        dtype: max(row.get("ops_per_s", 0.0) for row in run["gemm"] if row["dtype"] == dtype)
        / peaks[dtype]
        for dtype in ("float32", "float16", "bfloat16", "float8_e4m3", "int8")
    }
    assert profile.efficiency["linear"].value == pytest.approx(median(rates.values()), abs=0.01)
    read = max(row["bytes_per_s"] for row in run["memory"] if row["kind"] == "read")
    sustained = read / profile.memory.bandwidth_bytes_per_s.value
    assert profile.memory.fraction.value == pytest.approx(sustained, abs=0.01)
    launch_s = run["launch"]["graph_s"]["seconds"]
    assert profile.overhead.launch_s.value == pytest.approx(launch_s, rel=0.01)
    beyond: list[float] = []
    for row in run["gemm"]:
        if row["dtype"] in ("float32", "tf32") or not row.get("seconds", 1) < 50e-6:
            continue
        width = 2 if "float16" in row["dtype"] else 1
        m, n, k = row["m"], row["n"], row["k"]
        moved = row.get("moved_bytes", (m + n) * k * width + 2 * m * n)
        rate = peaks[row["dtype"]] * rates[row["dtype"]]
        beyond.append(row["seconds"] - max(2 * m * n * k / rate, moved / read))
    assert profile.overhead.product_s is not None
    product_s = profile.overhead.product_s.value
    assert product_s == pytest.approx(median(beyond), abs=0.1e-6)
    for family, peak, names in (
        ("conv", peaks["float16"], ("conv 3x3 64", "conv 3x3 256", "conv 1x1 256")),
        ("depthwise", 2 * peaks["float32"], ("depthwise 3x3 192", "depthwise 5x5 384")),
    ):
        rows = [row for row in run["operators"] if row["name"] in names]
        share = median(
            row["ops_per_s"] * row["seconds"] / (row["seconds"] - product_s) / peak for row in rows
        )
        assert profile.efficiency[family].value == pytest.approx(share, rel=0.05)


@pytest.mark.parametrize("name", SHIPPED)
def test_peak_throughput_bandwidth_and_capacity_are_never_estimates(name: str) -> None:
    profile = load_profile(name)
    memory = profile.memory
    assert memory.capacity_bytes.origin in ("published", "derived")
    assert memory.bandwidth_bytes_per_s.origin in ("published", "derived")
    assert all(entry.ops_per_s.origin in ("published", "derived") for entry in profile.compute)


@pytest.mark.parametrize("name", SHIPPED)
def test_no_number_hides_outside_a_figure_and_no_source_is_unused(name: str) -> None:
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    raw = tomllib.loads(text)
    assert {key for key, value in raw.items() if isinstance(value, int | float)} == {"schema"}
    for key in raw["sources"]:
        assert f'source = "{key}"' in text, f"{name}: source {key} is never cited"


def test_derived_throughputs_follow_from_the_facts_they_cite() -> None:
    peaks = {
        (profile.name, entry.unit, entry.dtype): entry.ops_per_s.value
        for profile in list_profiles()
        for entry in profile.compute
    }
    assert peaks["intel-vnni", "cpu", "float32"] == pytest.approx(20 * 1.6e9 * 2 * 16 * 2)
    assert peaks["intel-vnni", "cpu", "int8"] == pytest.approx(20 * 1.6e9 * 2 * 64 * 2)
    assert peaks["arm-neon", "cpu", "float32"] == pytest.approx(4 * 2.4e9 * 2 * 4 * 2)
    assert peaks["arm-neon", "cpu", "int8"] == pytest.approx(4 * 2.4e9 * 2 * 16 * 2)
    assert peaks["h100", "gpu", "int8"] == pytest.approx(3958e12 / 2)
    bandwidth = load_profile("intel-vnni").memory.bandwidth_bytes_per_s.value
    assert bandwidth == pytest.approx(6 * 2933e6 * 8)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("M2", "m2"),
        ("apple-m2", "m2"),
        ("Apple-M2", "m2"),
        ("VNNI", "intel-vnni"),
        ("cascade-lake", "intel-vnni"),
        ("cortex-a76", "arm-neon"),
        (" raspberry-pi-5 ", "arm-neon"),
        ("h100-sxm", "h100"),
    ],
)
def test_aliases_in_any_case(asked: str, found: str) -> None:
    assert load_profile(asked) == load_profile(found)


def test_default_runtimes() -> None:
    runtimes = {profile.name: profile.runtime for profile in list_profiles()}
    assert {runtimes[name] for name in ("arm-neon", "edge-tpu", "cortex-a53")} == {"tflite"}
    assert {runtimes[name] for name in ("intel-vnni", "zen5", "neoverse-v2")} == {"onnxruntime"}
    assert {runtimes[name] for name in ("m2", "m4-max", "a18-pro")} == {"coreml"}
    assert {runtimes[name] for name in ("h100", "t4", "jetson-orin-nano")} == {"tensorrt"}
    assert {runtimes[name] for name in ("tpu-v5e", "tpu-v6e", "mi300x")} == {"xla"}


def test_an_unknown_target_names_the_nearest_and_where_the_rest_are() -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile("h10")
    message = str(caught.value)
    assert "unknown target 'h10'" in message
    assert "did you mean h100" in message
    assert f"advisor profiles lists all {len(SHIPPED)}" in message


def test_a_path_is_read(tmp_path: Path) -> None:
    path = tmp_path / "toy.toml"
    path.write_text(MINIMAL, encoding="utf-8")
    assert load_profile(path) == load_profile(str(path)) == parse_profile(MINIMAL, "x")


def test_a_missing_file_is_a_profile_error(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"cannot read the profile .*no\.toml"):
        load_profile(str(tmp_path / "no.toml"))
    with pytest.raises(ProfileError, match="cannot read the profile"):
        load_profile(tmp_path)


def test_the_digest_depends_on_content_alone() -> None:
    digest = parse_profile(MINIMAL, "a.toml").digest
    reordered = edited('title = "Toy"\nvendor = "Nobody"', 'vendor = "Nobody"\ntitle   = "Toy" # x')
    assert parse_profile(reordered, "b.toml").digest == digest
    assert parse_profile(edited("value = 10e9", "value = 10_000_000_000"), "a").digest == digest
    other = MINIMAL.replace("10e9", "11e9").replace("10 GB/s", "11 GB/s")
    assert parse_profile(other, "a.toml").digest != digest
    assert len(digest) == 64


def test_the_digest_is_the_same_in_another_process() -> None:
    code = (
        "from advisor.profiles.loader import list_profiles; import json, sys; "
        "json.dump({p.name: p.digest for p in list_profiles()}, sys.stdout); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7"},
        cwd=Path(__file__).parents[2],
    )
    assert json.loads(done.stdout) == {p.name: p.digest for p in list_profiles()}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "Toy"\n', "", r"^bad\.toml: title: missing"),
        ('kind = "cpu"', 'kind = "abacus"', r"^bad\.toml: kind: 'abacus' is not one of cpu, gpu"),
        ('kind = "cpu"', "kind = 3", r"^bad\.toml: kind: expected a non-empty string, got 3"),
        ('name = "toy"', 'name = "Toy One"', r"^bad\.toml: name: 'Toy One' cannot be"),
        ('name = "toy"', 'name = "host"', r"^bad\.toml: name: .*reserved"),
        ("schema = 1", "schema = 2", r"^bad\.toml: schema: this version reads schema 1"),
        ("schema = 1", "schema = true", r"^bad\.toml: schema: "),
        ('vendor = "Nobody"', 'vendor = "N"\ncolour = "red"', r"^bad\.toml: colour: unknown field"),
        ("[cores]\nvalue = 4", "[cores]\nvalue = 0", r"^bad\.toml: cores\.value: 0 cores is out"),
        ("[cores]\nvalue = 4", "[cores]\nvalue = 2.5", r"cores\.value: expected a whole number"),
        ("value = 10e9", "value = -10e9", r"memory\.bandwidth_bytes_per_s\.value: -10000000000"),
        ("value = 10e9", "value = nan", r"bandwidth_bytes_per_s\.value: expected a finite number"),
        ("value = 10e9", "value = inf", r"bandwidth_bytes_per_s\.value: expected a finite number"),
        ("value = 10e9", 'value = "10e9"', r"bandwidth_bytes_per_s\.value: expected a number of"),
        ("value = 10e9", "value = true", r"bandwidth_bytes_per_s\.value: expected a number of"),
        ("value = 10e9", "value = 10", r"bandwidth_bytes_per_s\.value: 10 .*not gigabytes or giga"),
        ("value = 10e9", "value = 10e15", r"bandwidth_bytes_per_s\.value: 1e\+16 bytes per second"),
        ("value = 4_000_000_000", "value = 4", r"capacity_bytes\.value: 4 bytes .*80_000_000_000"),
        ("value = 100e9", "value = 100", r"compute\[0\]\.ops_per_s\.value: 100 operations"),
        ("value = 0.5", "value = 50", r"efficiency\.linear\.value: 50 .*write 60 % as 0\.6"),
        ("value = 1e-6", "value = 1", r"overhead\.launch_s\.value: 1 seconds .*microseconds"),
        ("value = 1e-6", "value = 0", r"overhead\.launch_s\.value: 0 seconds"),
        ('dtype = "float32"', 'dtype = "float31"', r"compute\[0\]\.dtype: 'float31' is not one of"),
        (
            'dtype = "float32"',
            'dtype = "float32"\nmultiple = { value = 7.5, origin = "estimate", says = "x" }',
            r"compute\[0\]\.multiple\.value: expected a whole number",
        ),
        (
            "[overhead]\n",
            '[overhead]\nproduct_s = { value = 4, origin = "estimate", says = "x" }\n',
            r"overhead\.product_s\.value: 4 seconds .*microseconds",
        ),
        ('source = "sheet", says = "4 GB"', 'says = "4 GB"', r"capacity_bytes\.source: missing"),
        (
            'source = "sheet", says = "4 GB"',
            'source = "sheat", says = "4 GB"',
            r"memory\.capacity_bytes\.source: 'sheat' is not defined under \[sources\]",
        ),
        (
            'origin = "estimate", says = "assumed" }\n[[compute]]',
            'origin = "estimate", source = "sheet", says = "x" }\n[[compute]]',
            r"memory\.fraction\.source: an estimate has no source",
        ),
        (
            'linear = { value = 0.5, origin = "estimate", says = "assumed" }\n',
            "",
            r"efficiency\.linear: missing",
        ),
        ("[overhead]\n", "[overhead]\nspin_s = 1\n", r"overhead\.spin_s: unknown field"),
        (
            "[overhead]\n",
            '[platform]\niOS = "18"\n[overhead]\n',
            r"platform\.iOS: unknown field",
        ),
        (
            "[overhead]\n",
            '[platform]\nsm = "sm90"\n[overhead]\n',
            r"platform\.sm: 'sm90' cannot be taken: expected a version",
        ),
        (
            "[[compute]]\n",
            '[[compute]]\nunit = "cpu"\ndtype = "float32"\nops_per_s = '
            '{ value = 1e9, origin = "estimate", says = "x" }\n[[compute]]\n',
            r"compute\[1\]\.dtype: float32 of the cpu is given twice",
        ),
        (
            "[[compute]]\n",
            "core_bandwidth_bytes_per_s = "
            '{ value = 20e9, origin = "estimate", says = "x" }\n[[compute]]\n',
            r"core_bandwidth_bytes_per_s: one core draws 2e\+10 bytes/s but the whole",
        ),
        ("schema = 1", "schema = ", r"^bad\.toml: not a TOML file"),
        ('family = "Toys"', 'family = "Toys"\naliases = "t"', r"aliases: expected a list"),
        ('family = "Toys"', 'family = "Toys"\naliases = [1]', r"aliases\[0\]: expected a non-e"),
        ('family = "Toys"', 'family = "Toys"\nenergy = 1', r"energy: expected a table"),
        ("[overhead]\n", "[options]\nio = 8\n[overhead]\n", r"options\.io: expected a non-empty"),
        (
            'family = "Toys"',
            'family = "Toys"\nschemes = ["w8a9"]',
            r"schemes\[0\]: 'w8a9' is not one of fp32, .*w8a8,",
        ),
    ],
)
def test_a_bad_profile_is_refused_with_the_path_of_the_field(
    old: str, new: str, message: str
) -> None:
    with pytest.raises(ProfileError, match=message):
        parse_profile(edited(old, new), "bad.toml")


def test_schemes_and_options_of_a_device_are_read() -> None:
    text = edited('family = "Toys"', 'family = "Toys"\nschemes = ["w8a8"]')
    made = parse_profile(text.replace("[overhead]", '[options]\nio = "int8"\n[overhead]'), "toy")
    assert (made.schemes, dict(made.options)) == (("w8a8",), {"io": "int8"})
    plain = parse_profile(MINIMAL, "toy")
    assert (plain.schemes, dict(plain.options)) == ((), {})


def test_a_cpu_without_a_core_count_is_refused() -> None:
    start, end = MINIMAL.index("[cores]"), MINIMAL.index("[memory]")
    with pytest.raises(ProfileError, match=r"^bad\.toml: cores: missing"):
        parse_profile(MINIMAL[:start] + MINIMAL[end:], "bad.toml")


@pytest.mark.parametrize(
    ("name", "minimum", "met"),
    [
        ("m2", "iOS18", True),
        ("m2", "iOS26", False),
        ("h100", "sm80", True),
        ("h100", "sm90", True),
        ("h100", "sm120", False),  # "120" sorts before "90" as text
    ],
)
def test_platforms_can_be_compared_with_a_minimum(name: str, minimum: str, met: bool) -> None:
    assert (shortfall(minimum, load_profile(name).platform) == "") is met


def register(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    entry = importlib.metadata.EntryPoint("extra", value, loader.ENTRY_POINT_GROUP)

    def registered(*, group: str) -> list[importlib.metadata.EntryPoint]:
        return [entry] if group == loader.ENTRY_POINT_GROUP else []

    monkeypatch.setattr(loader, "entry_points", registered)


def write_module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])


def test_an_entry_point_adds_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy.toml").write_text(MINIMAL, encoding="utf-8")
    write_module(
        tmp_path,
        monkeypatch,
        "toy_profiles_a",
        "from pathlib import Path\nFILE = Path(__file__).with_name('toy.toml')\n"
        "def folder():\n    return str(FILE.parent)\n",
    )
    for value in ("toy_profiles_a:FILE", "toy_profiles_a:folder"):
        register(monkeypatch, value)
        assert profile_names() == tuple(sorted((*SHIPPED, "toy")))
        loaded: Profile = load_profile("toy")
        assert loaded.vendor == "Nobody"


def test_bad_entry_points_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "h100.toml").write_text(MINIMAL, encoding="utf-8")
    (tmp_path / "other.toml").write_text(MINIMAL, encoding="utf-8")
    write_module(
        tmp_path,
        monkeypatch,
        "toy_profiles_b",
        "from pathlib import Path\nHERE = Path(__file__).parent\nTAKEN = HERE / 'h100.toml'\n"
        "GONE = HERE / 'gone.toml'\nNUMBER = 3\nRENAMED = HERE / 'other.toml'\n",
    )
    for value, message in (
        ("toy_profiles_b:TAKEN", "two profiles are named 'h100'"),
        ("toy_profiles_b:GONE", "does not exist"),
        ("toy_profiles_b:NUMBER", "gives 3; expected the path"),
        ("toy_profiles_b:RENAMED", "name: 'toy' must equal the file's name, 'other'"),
        ("toy_profiles_c:X", "'extra' of advisor.profiles cannot be loaded"),
    ):
        register(monkeypatch, value)
        with pytest.raises(ProfileError, match=message):
            list_profiles()


def test_an_alias_of_two_profiles_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = edited('family = "Toys"', 'family = "Toys"\naliases = ["apple-m2"]')
    (tmp_path / "toy.toml").write_text(text, encoding="utf-8")
    write_module(tmp_path, monkeypatch, "toy_profiles_d", "FILE = __file__[:-17] + 'toy.toml'\n")
    register(monkeypatch, "toy_profiles_d:FILE")
    with pytest.raises(ProfileError, match="'apple-m2' stands for both m2 and toy"):
        load_profile("apple-m2")


def test_the_guide_names_every_profile_and_its_example_is_valid(root: Path) -> None:
    guide = (root / "docs" / "profiles.md").read_text(encoding="utf-8")
    for profile in list_profiles():
        row = next(line for line in guide.splitlines() if line.startswith(f"| `{profile.name}`"))
        assert all(f"`{alias}`" in row for alias in profile.aliases)
    example = guide.split("```toml\n")[1].split("```")[0]
    assert parse_profile(example, "guide").name == "my-board"
