"""A profile of this machine, measured with the kernels of ONNX Runtime."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from advisor.atomic import write_text
from advisor.doctor import cache_folder, read_cpu
from advisor.profiles.parse import parse_profile
from advisor.profiles.schema import Profile

if TYPE_CHECKING:
    from advisor.doctor import Cpu
    from advisor.targets.onnxruntime.rates import Rates

HOST: Final = "host"
LEAST_SHARE, MOST_SHARE = 1e-3, 1.0
FALLBACK_CAPACITY: Final = 8_000_000_000

Say = Callable[[int, int], None]


def host_profile(say: Say | None = None) -> Profile:
    """The profile "host" of this machine: kept from before, or measured now and kept.

    Raises:
        MissingDependencyError: onnxruntime or onnx is not installed.
        OutputError: the cache cannot be written.
    """
    cpu = read_cpu()
    path = _kept_at(cpu)
    if not path.is_file():
        write_text(path, measure_profile(say))
    return replace(parse_profile(path.read_text(encoding="utf-8"), path.name), name=HOST)


def measure_profile(say: Say | None = None) -> str:
    """The TOML text of a profile of this machine, measured now; takes some ten seconds.

    Raises:
        MissingDependencyError: onnxruntime or onnx is not installed.
    """
    from advisor.targets.onnxruntime.rates import measure_rates
    from advisor.targets.onnxruntime.session import runtime_version

    version = runtime_version()
    return write_profile(measure_rates(say or (lambda _done, _all: None)), read_cpu(), version)


def write_profile(rates: Rates, cpu: Cpu, version: str) -> str:
    """The TOML text of a profile from what was measured."""

    def of_peak(ops_per_s: float, what: str) -> tuple[float, str]:
        return _share(ops_per_s, rates.float32_ops_per_s), f"{what} against the peak above"

    figures = {
        "memory.bandwidth_bytes_per_s": (rates.bandwidth_bytes_per_s, "Add on arrays of 34 MB"),
        "memory.fraction": (1.0, "the bandwidth above was sustained, not a peak"),
        "memory.core_bandwidth_bytes_per_s": (
            min(rates.core_bandwidth_bytes_per_s, rates.bandwidth_bytes_per_s),
            "the same Add with one thread",
        ),
        "efficiency.linear": of_peak(rates.linear_ops_per_s, "MatMul 128 x 768 x 768"),
        "efficiency.conv": of_peak(rates.conv_ops_per_s, "Conv 3x3, 64 to 64 channels, 56 x 56,"),
        "efficiency.depthwise": of_peak(
            rates.depthwise_ops_per_s, "depthwise Conv 3x3, 192 channels, 56 x 56,"
        ),
        "efficiency.embedding": (
            _share(rates.gather_bytes_per_s, rates.bandwidth_bytes_per_s),
            "Gather of 16384 rows of 384 against the bandwidth above",
        ),
        "efficiency.elementwise": of_peak(
            4 * rates.convert_elements_per_s, "QuantizeLinear of 2^20 elements, 4 operations each,"
        ),
        "overhead.launch_s": (max(rates.launch_s, 1e-9), "per node of a chain of 200 tiny Adds"),
        "overhead.dispatch_s": (max(rates.dispatch_s, 1e-9), "a model of one tiny Add"),
    }
    lines = [
        "# Measured on this machine; see docs/measurement.md.",
        "schema = 1",
        f'name = "{profile_name(cpu)}"',
        f"title = {json.dumps(f'{cpu.model}, {cpu.cores} cores, as measured')}",
        'vendor = "this machine"',
        f"family = {json.dumps(cpu.model)}",
        'kind = "cpu"',
        'runtime = "onnxruntime"',
        "",
        *(["[platform]", 'vnni = "0"', ""] if cpu.lacks_vnni else []),
        "[sources]",
        f"run = {json.dumps(f'{version} on {cpu.model}')}",
        'system = "the operating system"',
        "",
        *_figure("cores", cpu.cores, "cores that the system shows", source="system"),
        *_figure(
            "memory.capacity_bytes", _capacity(), "memory that the system shows", source="system"
        ),
    ]
    for name, (value, says) in figures.items():
        lines += _figure(name, value, says)
    for dtype, value in (("float32", rates.float32_ops_per_s), ("int8", rates.int8_ops_per_s)):
        operator = "MatMul" if dtype == "float32" else "MatMulIntegerToFloat"
        lines += ["[[compute]]", 'unit = "cpu"', f'dtype = "{dtype}"', ""]
        lines += _figure("compute.ops_per_s", value, f"{operator} 512 x 512 x 512")
    return "\n".join(lines)


def profile_name(cpu: Cpu) -> str:
    """A name that a profile file of this machine can have, such as "amd-epyc-2"."""
    slug = re.sub(r"[^a-z0-9]+", "-", cpu.model.lower()).strip("-") or "cpu"
    return f"{slug}-{cpu.cores}"


def _kept_at(cpu: Cpu) -> Path:
    from advisor.targets.onnxruntime.session import runtime_version

    facts: Mapping[str, object] = {
        "cpu": cpu.model,
        "cores": cpu.cores,
        "features": cpu.features,
        "runtime": runtime_version(),
        "code": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "profiles" / f"{profile_name(cpu)}-{digest[:16]}.toml"


def _figure(name: str, value: float, says: str, *, source: str = "run") -> list[str]:
    number = int(value) if source == "system" else f"{value:.6g}"
    return [
        f"[{name}]",
        f"value = {number if isinstance(number, int) else repr(float(number))}",
        'origin = "measured"',
        f'source = "{source}"',
        f"says = {json.dumps(says)}",
        "",
    ]


def _share(part: float, whole: float) -> float:
    return min(max(part / whole, LEAST_SHARE), MOST_SHARE)


def _capacity() -> int:
    """Bytes of memory in the machine; a guess where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not a POSIX system, or the name is unknown
        return FALLBACK_CAPACITY
