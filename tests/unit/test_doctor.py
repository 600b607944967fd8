"""The diagnosis against real machine descriptions, real metadata files and pip's own listing."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from advisor.doctor import Component, Diagnosis, check_cache, diagnose, read_cpu

XEON = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni amx_bf16 avx512_bf16 avx_vnni amx_tile amx_int8

processor\t: 1
model name\t: another
flags\t\t: fpu
"""

GRAVITON = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd aes crc32 atomics fphp asimdhp asimdrdm asimddp sve i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


def find(diagnosis: Diagnosis, title: str) -> Component:
    return next(part for part in diagnosis.components if part.title == title)


def write_distribution(folder: Path, name: str, version: str, requires: tuple[str, ...]) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {each}" for each in requires]
    (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of ``sys.path``: only what a test writes there is installed."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    requires = ("torch<2.14,>=2.13", 'onnxruntime<2,>=1.31; extra == "onnxruntime"')
    write_distribution(tmp_path, "quantadvisor", "0.1.0", requires)
    return tmp_path


def test_reads_x86_features_of_the_first_core(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(XEON, encoding="utf-8")
    cpu = read_cpu(tmp_path / "cpuinfo")
    assert cpu.model == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert cpu.features == (
        *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    )


def test_reads_arm_features_where_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(GRAVITON, encoding="utf-8")
    cpu = read_cpu(tmp_path / "cpuinfo")
    assert cpu.model == "Arm Neoverse V1"
    assert cpu.features == ("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve")


def test_features_are_unknown_rather_than_absent_without_cpuinfo(tmp_path: Path) -> None:
    assert read_cpu(tmp_path / "missing").features is None


def test_versions_are_those_that_pip_lists() -> None:
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=True,
    )
    listed = {
        each["name"].replace("_", "-"): each["version"] for each in json.loads(listing.stdout)
    }
    for part in diagnose().components:
        assert part.version == listed.get(part.distribution), part


def test_a_missing_runtime_names_its_extra_and_is_no_problem(installed: Path) -> None:
    write_distribution(installed, "torch", "2.13.0+cpu", ())
    diagnosis = diagnose()
    part = find(diagnosis, "ONNX Runtime")
    assert (part.version, part.ok) == (None, False)
    assert part.remedy == 'pip install "quantadvisor[onnxruntime]"'
    assert diagnosis.problems == ()
    assert diagnosis.ok


def test_a_local_build_of_torch_is_in_range(installed: Path) -> None:
    write_distribution(installed, "torch", "2.13.0+cpu", ())
    assert find(diagnose(), "PyTorch").ok


def test_a_missing_torch_is_a_problem(installed: Path) -> None:
    assert installed.is_dir()
    (problem,) = diagnose().problems
    assert problem == (
        "PyTorch: torch <2.14,>=2.13 is needed, it is not installed; "
        'run: pip install "torch<2.14,>=2.13"'
    )


def test_a_runtime_out_of_range_is_a_problem(installed: Path) -> None:
    write_distribution(installed, "torch", "2.13.0", ())
    write_distribution(installed, "onnxruntime", "1.20.1", ())
    (problem,) = diagnose().problems
    assert "onnxruntime <2,>=1.31 is needed, 1.20.1 is installed" in problem
    assert 'pip install "quantadvisor[onnxruntime]"' in problem


def test_another_build_of_a_runtime_counts(installed: Path) -> None:
    write_distribution(installed, "torch", "2.13.0", ())
    write_distribution(installed, "onnxruntime-gpu", "1.31.1", ())
    part = find(diagnose(), "ONNX Runtime")
    assert (part.distribution, part.version, part.ok) == ("onnxruntime-gpu", "1.31.1", True)


def test_the_cache_is_tried_but_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "deep" / "cache"))
    cache = check_cache()
    assert (cache.path, cache.problem) == (tmp_path / "deep" / "cache", "")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_below_a_file_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "file" / "cache"))
    assert "Not a directory" in check_cache().problem
    assert any("ADVISOR_CACHE" in problem for problem in diagnose().problems)


def test_diagnosis_imports_no_runtime(root: Path) -> None:
    code = (
        "import sys; from advisor.doctor import diagnose; diagnose();"
        "heavy = {'torch', 'numpy', 'onnx', 'onnxruntime', 'onnxscript', 'coremltools',"
        " 'tensorrt', 'tensorrt_rtx', 'transformers', 'litert_torch', 'ai_edge_litert'};"
        "print(heavy & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("platform", "says"),
    [("macOS-15.1-arm64-arm-64bit", "never run for this project"), ("Linux-6.1", "only a Mac")],
)
def test_core_ml_is_explained(platform: str, says: str) -> None:
    diagnosis = replace(diagnose(), platform=platform)
    assert says in diagnosis.notes[-1]
    assert not any(says in note for note in replace(diagnosis, components=()).notes)
