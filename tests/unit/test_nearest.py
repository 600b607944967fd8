"""Which profile a machine is like, from what real machines print."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from advisor.doctor import Cpu, diagnose, read_cpu
from advisor.gpus import Gpus, find_gpus
from advisor.profiles.host import host_profile, write_profile
from advisor.profiles.loader import list_profiles, profile_names
from advisor.profiles.nearest import (
    ARM_PARTS,
    BY_CAPABILITY,
    BY_FLAG,
    GPU_NAMES,
    INTEL_MODELS,
    Nearest,
    nearest_apple,
    nearest_cpu,
    read_gpus,
)
from advisor.profiles.parse import parse_profile
from tests.unit.test_host_profile import RATES

INTEL = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: {model}
model name\t: {name}
stepping\t: 7
flags\t\t: fpu vme sse sse2 ssse3 fma avx f16c avx2 {flags}
"""
AMD = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: {family}
model\t\t: {model}
model name\t: {name}
flags\t\t: fpu vme sse sse2 svm fma avx f16c avx2 {flags}
"""
ARM = """\
processor\t: {index}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 {flags}
CPU implementer\t: {made}
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: {part}
CPU revision\t: 3
"""
ICE = "avx512f avx512dq avx512bw avx512_vbmi2 gfni vaes avx512_vnni"
TILES = f"{ICE} avx_vnni avx512_bf16 amx_bf16 amx_tile amx_int8"


def intel(model: int, name: str, flags: str) -> str:
    return INTEL.format(model=model, name=name, flags=flags)


def amd(family: int, model: int, name: str, flags: str) -> str:
    return AMD.format(family=family, model=model, name=name, flags=flags)


def arm(*cores: tuple[str, str], flags: str = "") -> str:
    return "\n".join(
        ARM.format(index=index, made=made, part=part, flags=flags)
        for index, (made, part) in enumerate(cores)
    )


@pytest.mark.parametrize(
    ("cpuinfo", "target", "why"),
    [
        (
            intel(143, "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", TILES),
            "sapphire-rapids",
            "its model number 143 is Sapphire Rapids",
        ),
        (intel(207, "INTEL(R) XEON(R) PLATINUM 8581C CPU @ 2.30GHz", TILES), "sapphire-rapids", ""),
        # A virtual machine that hides the tiles has the instructions of the design before.
        (intel(143, "Intel Xeon Processor (SapphireRapids)", ICE), "ice-lake", "avx512_vnni"),
        (intel(106, "Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", ICE), "ice-lake", ""),
        (
            intel(85, "Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz", "avx512f avx512_vnni"),
            "intel-vnni",
            "Cascade Lake",
        ),
        (intel(85, "Intel(R) Xeon(R) Platinum 8124M CPU @ 3.00GHz", "avx512f"), None, ""),
        (intel(63, "Intel(R) Xeon(R) CPU E5-2680 v3 @ 2.50GHz", ""), None, ""),
        (intel(151, "12th Gen Intel(R) Core(TM) i9-12900K", "avx_vnni gfni"), "alder-lake", ""),
        (intel(170, "Intel(R) Core(TM) Ultra 7 155H", "avx_vnni"), "alder-lake", "flag avx_vnni"),
        (amd(25, 17, "AMD EPYC 9R14", f"{ICE} avx512_bf16"), "zen4", "family 25"),
        (amd(25, 97, "AMD Ryzen 9 7950X 16-Core Processor", ICE), "zen4", ""),
        (amd(26, 2, "AMD EPYC 9755 128-Core Processor", f"{ICE} avx_vnni"), "zen5", "family 26"),
        (amd(25, 1, "AMD EPYC 7763 64-Core Processor", ""), None, ""),
        (amd(23, 49, "AMD EPYC 7R32", ""), None, ""),
        (arm(*[("0x41", "0xd08")] * 4), "raspberry-pi-4", "Cortex-A72"),
        (arm(*[("0x41", "0xd0b")] * 4, flags="asimddp"), "arm-neon", "Cortex-A76"),
        (arm(("0x41", "0xd0c")), "neoverse-n1", "Neoverse N1"),
        (arm(("0x41", "0xd40"), flags="sve i8mm bf16 asimddp"), "neoverse-v1", ""),
        (arm(("0x41", "0xd4f")), "neoverse-v2", ""),
        (arm(*[("0x41", "0xd05")] * 4, *[("0x41", "0xd0b")] * 4), "rk3588", "Cortex-A55"),
        # Pixel 6: the fastest kind comes last.
        (
            arm(("0x41", "0xd05"), ("0x41", "0xd0b"), ("0x41", "0xd44")),
            "cortex-x1",
            "its cores are Arm Cortex-X1",
        ),
        (arm(("0x41", "0xd05")), None, ""),
        (arm(("0x61", "0x022")), None, ""),
        ("", None, ""),
    ],
)
def test_processors(cpuinfo: str, target: str | None, why: str) -> None:
    found = nearest_cpu(cpuinfo)
    assert (found.target if found else None) == target
    assert found is None or why in found.why


@pytest.mark.parametrize(
    ("brand", "target", "why"),
    [
        ("Apple M2", "m2", "by its name"),
        ("Apple M1 Max\n", "m1-max", "by its name"),
        ("Apple M3 Pro", "m3-pro", "by its name"),
        ("Apple M2 Ultra", "m2-max", "nearest"),
        ("Apple M5", "m4", "the nearest to Apple M5"),
        ("Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", None, ""),
    ],
)
def test_chips_of_macs(brand: str, target: str | None, why: str) -> None:
    found = nearest_apple(brand)
    assert (found.target if found else None) == target
    assert found is None or why in found.why


def test_gpus_as_the_driver_lists_them() -> None:
    listing = (
        "NVIDIA H100 80GB HBM3, 9.0\nNVIDIA H100 PCIe, 9.0\nNVIDIA H200, 9.0\nTesla T4, 7.5\n"
        "NVIDIA A100-SXM4-40GB, 8.0\nNVIDIA A100-SXM4-80GB, 8.0\nNVIDIA L4, 8.9\nNVIDIA L40S, 8.9\n"
        "NVIDIA A10G, 8.6\nTesla V100-SXM2-16GB, 7.0\nNVIDIA GeForce RTX 4090, 8.9\n"
        "NVIDIA B200, 10.0\n\nNVIDIA RTX A6000, 8.6\nNVIDIA GeForce GTX 1080, 6.1\n"
    )
    gpus = read_gpus(listing)
    assert [gpu.nearest and gpu.nearest.target for gpu in gpus] == [
        *("h100", "h100-pcie", "h200", "t4", "a100-40gb", "a100", "l4", "l40s", "a10", "v100"),
        *("rtx-4090", "b200", "a10", None),
    ]
    assert gpus[0].says == (
        "NVIDIA H100 80GB HBM3 is here: plan for it with target 'h100' (by its name)"
    )
    assert "its compute capability 8.6" in gpus[-2].says
    assert "there is no profile" in gpus[-1].says
    assert Gpus(found=gpus[:1] * 2).notes == (gpus[0].says,)  # two of a kind are said once


def test_every_target_that_is_named_is_a_profile() -> None:
    named = {target for target, _, _ in INTEL_MODELS.values()} | {t for _, t in BY_FLAG}
    named |= {target for _, target in ARM_PARTS.values() if target} | {t for _, t in GPU_NAMES}
    named |= set(BY_CAPABILITY.values()) | {"zen4", "zen5", "rk3588"}
    named |= {
        found.target
        for number in range(1, 5)
        for kind in ("", " Pro", " Max")
        if (found := nearest_apple(f"Apple M{number}{kind}")) is not None
    }
    assert named <= set(profile_names())
    by_sm = {each.name: each.platform["sm"] for each in list_profiles() if "sm" in each.platform}
    for capability, target in BY_CAPABILITY.items():
        assert by_sm[target].removesuffix("a") == capability.replace(".", "")


def fake_tool(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_the_drivers_tool_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tool(tmp_path, 'echo "NVIDIA L4, 8.9"', monkeypatch)
    (note,) = find_gpus().notes
    assert "target 'l4'" in note
    assert note in diagnose().notes


def test_a_driver_that_does_not_answer_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tool(tmp_path, "exit 9", monkeypatch)
    assert "does not list a GPU" in find_gpus().problem


def test_doctor_imports_no_torch_for_gpus(root: Path) -> None:
    code = (
        "import sys; from advisor.gpus import find_gpus; find_gpus(); print('torch' in sys.modules)"
    )
    asked = [sys.executable, "-c", code]
    assert subprocess.check_output(asked, cwd=root, text=True).strip() == "False"


def test_an_arm_processor_has_the_names_of_its_cores(tmp_path: Path) -> None:
    text = arm(("0x41", "0xd05"), ("0x41", "0xd0b"), ("0x99", "0x001"))
    (tmp_path / "cpuinfo").write_text(text)
    assert (
        read_cpu(tmp_path / "cpuinfo").model
        == "Arm Cortex-A55, Arm Cortex-A76, Arm core 0x99 0x001"
    )


SPR = Cpu(
    model="Xeon",
    cores=2,
    features=("avx2", "amx_int8", "avx512_vnni"),
    nearest=Nearest(target="sapphire-rapids", why="its flag amx_int8"),
)


def test_what_is_not_measured_comes_from_the_nearest_profile() -> None:
    profile = parse_profile(write_profile(RATES, SPR, "onnxruntime 1.0"), "host.toml")
    made = {entry.dtype: entry.ops_per_s for entry in profile.compute}
    assert {dtype: figure.origin for dtype, figure in made.items()} == {
        "float32": "measured",
        "int8": "measured",
        "float16": "estimate",
        "bfloat16": "estimate",
    }
    # Sapphire Rapids: 1024 operations in the tiles a cycle against 64 in AVX-512.
    assert made["bfloat16"].value == pytest.approx(16 * made["float32"].value)
    assert "not measured" in made["bfloat16"].says
    assert "sapphire-rapids" in made["bfloat16"].says
    assert profile.notes == ("Xeon is the most like 'sapphire-rapids' (its flag amx_int8).",)


def test_without_a_near_profile_nothing_is_assumed() -> None:
    cpu = replace(SPR, nearest=None)
    profile = parse_profile(write_profile(RATES, cpu, "onnxruntime 1.0"), "host.toml")
    assert {entry.dtype for entry in profile.compute} == {"float32", "int8"}
    assert "no profile of the catalogue" in profile.notes[0]


def test_host_says_which_target_its_gpu_has(
    brief_rates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = host_profile()
    fake_tool(brief_rates, 'echo "NVIDIA L4, 8.9"', monkeypatch)
    assert host_profile().notes == (*without.notes, find_gpus().notes[0])
