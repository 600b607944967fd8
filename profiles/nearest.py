"""Which profile of the catalogue a machine is the most like, from what its system says of it.

Pure functions of texts: /proc/cpuinfo of Linux, the brand of a Mac's chip, and what ``nvidia-smi``
prints. Numbers of processors are those of Intel's and AMD's manuals and of Arm's MIDR registers, as
Linux lists them (arch/x86/include/asm/intel-family.h, arch/arm64/include/asm/cputype.h).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

SMI_QUERY: Final = ("--query-gpu=name,compute_cap", "--format=csv,noheader")
"""What ``nvidia-smi`` is asked for; ``read_gpus`` reads its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """target: name of the profile. why: what it was told by, such as "its flag amx_int8"."""

    target: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """An NVIDIA GPU. nearest: None where the catalogue has none of its kind."""

    name: str
    nearest: Nearest | None

    @property
    def says(self) -> str:
        """One sentence: which target plans for it."""
        if self.nearest is None:
            return (
                f"{self.name} is here, of which there is no profile; write one (docs/profiles.md)"
            )
        return (
            f"{self.name} is here: plan for it with target {self.nearest.target!r} "
            f"({self.nearest.why})"
        )


ARM_PARTS: Final = {
    ("0x41", "0xd03"): ("Arm Cortex-A53", "cortex-a53"),
    ("0x41", "0xd05"): ("Arm Cortex-A55", ""),
    ("0x41", "0xd07"): ("Arm Cortex-A57", "cortex-a57"),
    ("0x41", "0xd08"): ("Arm Cortex-A72", "raspberry-pi-4"),
    ("0x41", "0xd0b"): ("Arm Cortex-A76", "arm-neon"),
    ("0x41", "0xd0c"): ("Arm Neoverse N1", "neoverse-n1"),
    ("0x41", "0xd0d"): ("Arm Cortex-A77", "cortex-a78"),
    ("0x41", "0xd40"): ("Arm Neoverse V1", "neoverse-v1"),
    ("0x41", "0xd41"): ("Arm Cortex-A78", "cortex-a78"),
    ("0x41", "0xd42"): ("Arm Cortex-A78AE", "cortex-a78"),
    ("0x41", "0xd44"): ("Arm Cortex-X1", "cortex-x1"),
    ("0x41", "0xd49"): ("Arm Neoverse N2", "neoverse-v1"),
    ("0x41", "0xd4e"): ("Arm Cortex-X3", "cortex-x3"),
    ("0x41", "0xd4f"): ("Arm Neoverse V2", "neoverse-v2"),
    ("0x51", "0x001"): ("Qualcomm Oryon", "snapdragon-x-elite"),
}
"""By implementer and part, name of the core and profile; the last core listed is the fastest."""

RK3588_CORES: Final = {("0x41", "0xd05"), ("0x41", "0xd0b")}

INTEL_MODELS: Final = {
    85: ("intel-vnni", "avx512_vnni", "Cascade Lake"),
    106: ("ice-lake", "avx512_vnni", "Ice Lake"),
    108: ("ice-lake", "avx512_vnni", "Ice Lake"),
    143: ("sapphire-rapids", "amx_int8", "Sapphire Rapids"),
    151: ("alder-lake", "avx_vnni", "Alder Lake"),
    154: ("alder-lake", "avx_vnni", "Alder Lake"),
    173: ("sapphire-rapids", "amx_int8", "Granite Rapids, which has Sapphire Rapids's tiles"),
    183: ("alder-lake", "avx_vnni", "Raptor Lake, which has Alder Lake's cores"),
    191: ("alder-lake", "avx_vnni", "Raptor Lake, which has Alder Lake's cores"),
    207: ("sapphire-rapids", "amx_int8", "Emerald Rapids, which has Sapphire Rapids's tiles"),
}
"""By model of family 6: profile, the flag that makes it that, name of the design. A virtual machine
may hide the flag, and then the instructions are not there."""

ZEN4, ZEN5 = 25, 26
"""AMD's families; the older one is also Zen 3's, which has no VNNI."""

BY_FLAG: Final = (
    ("amx_int8", "sapphire-rapids"),
    ("avx512_vnni", "ice-lake"),
    ("avx_vnni", "alder-lake"),
)
"""Where the model says nothing: the first flag that the processor has."""

GPU_NAMES: Final = (
    (r"B200\b", "b200"),
    (r"H200\b", "h200"),
    (r"H100 PCIe|H100 NVL", "h100-pcie"),
    (r"H100\b", "h100"),
    (r"A100\b.*40GB", "a100-40gb"),
    (r"A100\b", "a100"),
    (r"L40S?\b", "l40s"),
    (r"L4\b", "l4"),
    (r"A10G?\b", "a10"),
    (r"\bT4\b", "t4"),
    (r"V100\b", "v100"),
    (r"P100\b", "p100"),
    (r"RTX 5090\b", "rtx-5090"),
    (r"RTX 4090\b", "rtx-4090"),
    (r"RTX 3090\b", "rtx-3090"),
)
BY_CAPABILITY: Final = {
    "6.0": "p100",
    "7.0": "v100",
    "7.5": "t4",
    "8.0": "a100",
    "8.6": "a10",
    "8.7": "jetson-agx-orin",
    "8.9": "l4",
    "9.0": "h100",
    "10.0": "b200",
    "12.0": "rtx-5090",
}


def nearest_cpu(cpuinfo: str) -> Nearest | None:
    """The profile that a processor is the most like; None where no profile has its instructions.

    cpuinfo: the text of /proc/cpuinfo.
    """
    fields = first_fields(cpuinfo)
    parts = arm_parts(cpuinfo)
    if parts:
        return _nearest_arm(parts)
    flags = set(fields.get("flags", "").split())
    vendor, family = fields.get("vendor_id", ""), _number(fields.get("cpu family", ""))
    model = _number(fields.get("model", ""))
    if vendor == "AuthenticAMD" and "avx512_vnni" in flags:
        design = "zen5" if family == ZEN5 else "zen4"
        return Nearest(target=design, why=f"AMD's family {family} with its flag avx512_vnni")
    if vendor == "GenuineIntel" and model in INTEL_MODELS:
        target, flag, design = INTEL_MODELS[model]
        if flag in flags:
            return Nearest(target=target, why=f"its model number {model} is {design}")
    for flag, target in BY_FLAG:
        if flag in flags:
            return Nearest(target=target, why=f"its flag {flag}")
    return None


def nearest_apple(brand: str) -> Nearest | None:
    """The profile of a Mac's chip. brand: as machdep.cpu.brand_string has it, "Apple M2 Pro"."""
    found = re.fullmatch(r"Apple M(\d+)(?: (Pro|Max|Ultra))?", brand.strip())
    if found is None:
        return None
    number, kind = int(found[1]), (found[2] or "").lower()
    known = min(number, 4)
    grade = {"": "", "ultra": "-max"}.get(kind, f"-{kind}")
    target = f"m{known}{grade}"
    exact = known == number and kind != "ultra"
    return Nearest(target=target, why="by its name" if exact else f"the nearest to {brand.strip()}")


def read_gpus(listing: str) -> tuple[Gpu, ...]:
    """The GPUs that ``nvidia-smi`` lists when it is asked ``SMI_QUERY``."""
    found: list[Gpu] = []
    for line in filter(None, map(str.strip, listing.splitlines())):
        name, _, capability = (part.strip() for part in line.rpartition(","))
        found.append(Gpu(name=name, nearest=nearest_gpu(name, capability)))
    return tuple(found)


def nearest_gpu(name: str, capability: str) -> Nearest | None:
    """The profile of a GPU, or of one of its compute capability, such as "8.6"."""
    for pattern, target in GPU_NAMES:
        if re.search(pattern, name):
            return Nearest(target=target, why="by its name")
    target = BY_CAPABILITY.get(capability, "")
    why = f"the nearest one of its compute capability {capability}"
    return Nearest(target=target, why=why) if target else None


def first_fields(cpuinfo: str) -> dict[str, str]:
    """The fields of /proc/cpuinfo; the first core speaks for all."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip(), value.strip())
    return fields


def arm_parts(cpuinfo: str) -> list[tuple[str, str]]:
    """(implementer, part) of every kind of Arm core, in the order of the cores."""
    texts = ("implementer", "part")
    made, part = (re.findall(rf"^CPU {each}\s*:\s*(\S+)", cpuinfo, re.MULTILINE) for each in texts)
    return list(dict.fromkeys(zip(made, part, strict=False)))


def arm_name(cpuinfo: str) -> str:
    """Names of the kinds of Arm cores, "" where there is none."""
    return ", ".join(
        ARM_PARTS[each][0] if each in ARM_PARTS else f"Arm core {' '.join(each)}"
        for each in arm_parts(cpuinfo)
    )


def _nearest_arm(parts: list[tuple[str, str]]) -> Nearest | None:
    if set(parts) == RK3588_CORES:
        return Nearest(target="rk3588", why="Cortex-A55 and Cortex-A76 cores")
    name, target = ARM_PARTS.get(parts[-1], ("", ""))
    return Nearest(target=target, why=f"its cores are {name}") if target else None


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else -1
