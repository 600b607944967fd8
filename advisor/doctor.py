"""What this machine offers: interpreter, processor, runtimes, cache. Imports nothing heavy.

Versions come from the metadata of installed distributions, so a broken runtime cannot crash the
diagnosis and a slow one cannot slow it down.
"""

import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from platformdirs import user_cache_path

from advisor.gpus import Gpus, find_gpus
from advisor.profiles.nearest import Nearest, arm_name, first_fields, nearest_apple, nearest_cpu

DISTRIBUTION: Final = "quantadvisor"
CORE_ML: Final = "Core ML"
SYSCTL_LIMIT_S: Final = 5.0

CPU_FEATURES: Final = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve"),
)
"""Flags of /proc/cpuinfo that decide which kernels a runtime picks: x86 first, then Arm.

``asimddp`` is how Linux spells Arm's dot product (the architecture manual's FEAT_DotProd).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One package that the product uses.

    version: None when it is not installed. wanted: the version range this release supports, empty
    when any will do or when it is not known (an uninstalled checkout). required: nothing works
    without it. remedy: the command that installs it, empty when nothing needs doing.
    """

    title: str
    distribution: str
    version: str | None
    wanted: str
    required: bool
    remedy: str

    @property
    def ok(self) -> bool:
        """True when it is installed in a supported version."""
        return self.version is not None and not self.remedy


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """The processor. features: those of CPU_FEATURES; None where the system does not list them.

    nearest: the profile that it is the most like, None where the catalogue has none.
    """

    model: str
    cores: int
    features: tuple[str, ...] | None
    nearest: Nearest | None = None

    @property
    def says(self) -> str:
        """One sentence: which profile of the catalogue it is the most like."""
        if self.nearest is None:
            return f"{self.model}: no profile of the catalogue is of its kind"
        return f"{self.model} is the most like {self.nearest.target!r} ({self.nearest.why})"

    @property
    def lacks_vnni(self) -> bool:
        """Whether it is an x86 processor that multiplies 8-bit integers without VNNI."""
        known = self.features or ()
        return "avx2" in known and not {"avx512_vnni", "avx_vnni"} & set(known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Where intermediate results are kept. problem: why it cannot be written, else empty."""

    path: Path
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Everything ``advisor doctor`` shows."""

    python: str
    platform: str
    cpu: Cpu
    components: tuple[Component, ...]
    cache: Cache
    gpus: Gpus

    @property
    def problems(self) -> tuple[str, ...]:
        """What must be mended before anything works, one sentence each; empty when all is well.

        A runtime that is absent is not a problem: planning does without it.
        """
        return tuple(_problems(self))

    @property
    def notes(self) -> tuple[str, ...]:
        """What this machine and its system add to what is installed, one sentence each."""
        here = f"{self.cpu.says}; target 'host' measures this machine itself"
        return (here, *self.gpus.notes, *self._core_ml_notes())

    def _core_ml_notes(self) -> tuple[str, ...]:
        has_coreml = any(part.title == CORE_ML and part.ok for part in self.components)
        if not has_coreml:
            return ()
        if not self.platform.startswith("macOS"):
            return (
                "Core ML packages are written, read back and evaluated here; only a Mac runs them",
            )
        return (
            "Core ML itself is here: run and verify execute packages with it, by code that has "
            "never run for this project, which has no Mac; `python benchmark.py` in an artifact's "
            "folder measures every compute unit, `advisor profiles correct` takes the result",
        )

    @property
    def ok(self) -> bool:
        """True when there is no problem."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class _Known:
    title: str
    distributions: tuple[str, ...]  # any one of them will do; the first is what the extra installs
    extra: str = ""
    remedy: str = ""


_KNOWN: Final = (
    _Known("PyTorch", ("torch",)),
    _Known("ONNX Runtime", ("onnxruntime", "onnxruntime-gpu"), "onnxruntime"),
    _Known("ONNX exporter", ("onnxscript",), "onnxruntime"),
    _Known("LiteRT converter", ("litert-torch",), "tflite"),
    _Known("LiteRT runtime", ("ai-edge-litert",), "tflite"),
    _Known(CORE_ML, ("coremltools",), "coreml"),
    _Known("Core AI", ("coreai-opt",), "coreai"),
    _Known("TensorRT for RTX", ("tensorrt-rtx",), "tensorrt"),
    _Known(
        "TensorRT",
        ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        remedy="pip install tensorrt (needs NVIDIA's package index)",
    ),
    _Known("Hugging Face", ("transformers",), "hf"),
)


def diagnose() -> Diagnosis:
    """Look at this machine; changes nothing and imports no runtime."""
    wanted = _wanted_versions()
    return Diagnosis(
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=read_cpu(),
        components=tuple(_examine(known, wanted) for known in _KNOWN),
        cache=check_cache(),
        gpus=find_gpus(),
    )


def read_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Cpu:
    """The processor's name and instruction sets, from ``cpuinfo`` where there is one (Linux)."""
    model = platform.processor() or platform.machine()
    cores = os.cpu_count() or 1
    if not cpuinfo.is_file():
        brand = _apple_brand() or model
        return Cpu(model=brand, cores=cores, features=None, nearest=nearest_apple(brand))
    text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    fields = first_fields(text)
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return Cpu(
        model=fields.get("model name") or arm_name(text) or model,
        cores=cores,
        features=tuple(feature for feature in CPU_FEATURES if feature in flags),
        nearest=nearest_cpu(text),
    )


def _apple_brand() -> str:
    """Such as "Apple M2 Pro"; "" on another system."""
    if platform.system() != "Darwin":
        return ""
    asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(
            asked, capture_output=True, text=True, timeout=SYSCTL_LIMIT_S, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # then the name is the architecture's
        return ""


def cache_folder() -> Path:
    """The folder named by ``ADVISOR_CACHE``, else the user's cache folder; it may not exist yet."""
    named = os.environ.get("ADVISOR_CACHE")
    return Path(named).expanduser() if named else user_cache_path("advisor")


def check_cache() -> Cache:
    """Whether the cache can be written, tried with a file that leaves no trace.

    The folder is made only when something is stored, so the nearest existing parent is tried.
    """
    path = cache_folder()
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    try:
        with TemporaryFile(dir=nearest):
            return Cache(path=path, problem="")
    except OSError as error:
        return Cache(path=path, problem=f"{nearest}: {error.strerror or error}")


def _wanted_versions() -> dict[str, SpecifierSet]:
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # an uninstalled checkout: any version may be right
        return {}
    parsed = (Requirement(text) for text in requirements)
    return {canonicalize_name(each.name): each.specifier for each in parsed}


def _installed(distributions: tuple[str, ...]) -> tuple[str, str | None]:
    for name in distributions:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return distributions[0], None


def _examine(known: _Known, wanted: dict[str, SpecifierSet]) -> Component:
    name, version = _installed(known.distributions)
    versions = wanted.get(canonicalize_name(known.distributions[0]), SpecifierSet())
    fits = version is not None and versions.contains(version, prereleases=True)
    required = not known.extra and not known.remedy
    install = f'pip install "{name}{versions}"' if required else known.remedy
    return Component(
        title=known.title,
        distribution=name,
        version=version,
        wanted=str(versions),
        required=required,
        remedy="" if fits else install or f'pip install "{DISTRIBUTION}[{known.extra}]"',
    )


def _problems(diagnosis: Diagnosis) -> Iterator[str]:
    for part in diagnosis.components:
        if part.ok or not (part.required or part.version):
            continue
        state = f"{part.version} is installed" if part.version else "it is not installed"
        range_ = f"{part.distribution} {part.wanted}".strip()
        yield f"{part.title}: {range_} is needed, {state}; run: {part.remedy}"
    if diagnosis.cache.problem:
        yield (
            f"the cache {diagnosis.cache.path} cannot be written ({diagnosis.cache.problem}); "
            "set ADVISOR_CACHE to a folder that can"
        )
