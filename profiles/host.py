"""A profile of this machine, measured with the kernels of a runtime."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from advisor.atomic import write_text
from advisor.doctor import cache_folder, read_cpu
from advisor.errors import MissingEmitterError, UsageError
from advisor.gpus import find_gpus
from advisor.profiles.loader import load_profile
from advisor.profiles.parse import parse_profile
from advisor.profiles.rates import fit_family
from advisor.profiles.schema import Profile

if TYPE_CHECKING:
    from advisor.doctor import Cpu
    from advisor.profiles.rates import Rates
    from advisor.targets.base import Stopwatch

HOST: Final = "host"
DEFAULT: Final = "onnxruntime"
"""The runtime whose kernels are timed, unless told otherwise."""

MEASURED_DTYPES: Final = ("float32", "int8")

LEAST_SHARE, MOST_SHARE = 1e-3, 1.0
FALLBACK_CAPACITY: Final = 8_000_000_000

Say = Callable[[int, int], None]


def host_profile(say: Say | None = None, runtime: str = DEFAULT) -> Profile:
    """The profile "host" of this machine: kept from before, or measured now and kept.

    A runtime that cannot be timed has the figures of the default one.

    Raises:
        MissingDependencyError: the runtime is not installed.
        OutputError: the cache cannot be written.
    """
    cpu = read_cpu()
    timed = runtime if _stopwatch(runtime) is not None else DEFAULT
    path = _kept_at(cpu, timed)
    if not path.is_file():
        write_text(path, measure_profile(say, timed))
    kept = parse_profile(path.read_text(encoding="utf-8"), path.name)
    # What else is in the machine may change while the figures stay.
    return replace(kept, name=HOST, notes=(*kept.notes, *find_gpus().notes))


def measure_profile(say: Say | None = None, runtime: str = DEFAULT) -> str:
    """The TOML text of a profile of this machine, measured now; takes some ten seconds, or a
    minute or two on another runtime than the default.

    Raises:
        MissingDependencyError: the runtime is not installed.
        UsageError: the runtime cannot be timed.
    """
    version = _version(runtime)
    say = say or (lambda _done, _all: None)
    module = _measuring(runtime)
    rates = module.measure_rates(say) if runtime == DEFAULT else module.rates_of(runtime, say)
    return write_profile(rates, read_cpu(), version, runtime)


def _measuring(runtime: str) -> Any:
    """The module that times a runtime's kernels."""
    if runtime == DEFAULT:
        return importlib.import_module("advisor.targets.onnxruntime.rates")
    return importlib.import_module("advisor.measure.rates")


def write_profile(rates: Rates, cpu: Cpu, version: str, runtime: str = DEFAULT) -> str:
    """The TOML text of a profile from what was measured."""
    says = rates.says

    def said(name: str) -> str:
        return says.get(name, "single kernels")

    def of_peak(name: str, ops_per_s: float) -> tuple[float, str]:
        share = _share(ops_per_s, rates.float32_ops_per_s)
        return share, f"{said(name)} against the peak above"

    figures = {
        "memory.bandwidth_bytes_per_s": (
            rates.bandwidth_bytes_per_s,
            said("bandwidth_bytes_per_s"),
        ),
        "memory.fraction": (1.0, "the bandwidth above was sustained, not a peak"),
        "memory.core_bandwidth_bytes_per_s": (
            min(rates.core_bandwidth_bytes_per_s, rates.bandwidth_bytes_per_s),
            said("core_bandwidth_bytes_per_s"),
        ),
        "efficiency.linear": of_peak("linear_ops_per_s", rates.linear_ops_per_s),
        "efficiency.conv": of_peak("conv_ops_per_s", rates.conv_ops_per_s),
        "efficiency.depthwise": of_peak("depthwise_ops_per_s", rates.depthwise_ops_per_s),
        "efficiency.embedding": (
            _share(rates.gather_bytes_per_s, rates.bandwidth_bytes_per_s),
            f"{said('gather_bytes_per_s')} against the bandwidth above",
        ),
        "efficiency.elementwise": of_peak("elementwise_ops_per_s", rates.elementwise_ops_per_s),
        "overhead.launch_s": (max(rates.launch_s, 1e-9), said("launch_s")),
        "overhead.dispatch_s": (max(rates.dispatch_s, 1e-9), said("dispatch_s")),
    }
    if rates.cache_bytes is not None:
        figures["memory.cache_bytes"] = rates.cache_bytes, said("cache_bytes")
    lines = [
        "# Measured on this machine; see docs/measurement.md.",
        "schema = 1",
        f'name = "{profile_name(cpu)}"',
        f"title = {json.dumps(f'{cpu.model}, {cpu.cores} cores, as measured')}",
        'vendor = "this machine"',
        f"family = {json.dumps(cpu.model)}",
        'kind = "cpu"',
        f'runtime = "{runtime}"',
        "",
        f"notes = {json.dumps([f'{cpu.says}.'])}",
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
    for name, (value, text) in figures.items():
        lines += _figure(name, value, text)
    for dtype, value in zip(
        MEASURED_DTYPES, (rates.float32_ops_per_s, rates.int8_ops_per_s), strict=True
    ):
        lines += ["[[compute]]", 'unit = "cpu"', f'dtype = "{dtype}"', ""]
        lines += _figure("compute.ops_per_s", value, said(f"{dtype}_ops_per_s"))
    return "\n".join([*lines, *_unmeasured(rates, cpu)])


def _unmeasured(rates: Rates, cpu: Cpu) -> list[str]:
    """Throughputs that no kernel was timed for, as the nearest profile has them to its float32."""
    if cpu.nearest is None:
        return []
    like = load_profile(cpu.nearest.target)
    peaks = {entry.dtype: entry.ops_per_s.value for entry in like.compute if entry.unit == "cpu"}
    lines: list[str] = []
    for dtype, peak in peaks.items():
        if dtype in MEASURED_DTYPES:
            continue
        ratio = peak / peaks["float32"]
        says = f"not measured: {ratio:.3g} times the float32 above, as of {like.name}"
        lines += ["[[compute]]", 'unit = "cpu"', f'dtype = "{dtype}"', ""]
        lines += [
            "[compute.ops_per_s]",
            f"value = {ratio * rates.float32_ops_per_s:.6g}",
            'origin = "estimate"',
            f"says = {json.dumps(says)}",
            "",
        ]
    return lines


def profile_name(cpu: Cpu) -> str:
    """A name that a profile file of this machine can have, such as "amd-epyc-2"."""
    slug = re.sub(r"[^a-z0-9]+", "-", cpu.model.lower()).strip("-") or "cpu"
    return f"{slug}-{cpu.cores}"


def _version(runtime: str) -> str:
    """Name and version of a runtime that can be timed here."""
    stopwatch = _stopwatch(runtime)
    if stopwatch is None:
        raise UsageError(f"{runtime} cannot be timed; possible are onnxruntime and tflite")
    return stopwatch.machine()["runtime"]


def _stopwatch(runtime: str) -> Stopwatch | None:
    from advisor.targets.base import Stopwatch
    from advisor.targets.registry import target_named

    try:
        target = target_named(runtime)
    except MissingEmitterError:
        return None
    return target if isinstance(target, Stopwatch) else None


def _kept_at(cpu: Cpu, runtime: str) -> Path:
    facts: Mapping[str, object] = {
        "cpu": cpu.model,
        "cores": cpu.cores,
        "features": cpu.features,
        "runtime": _version(runtime),
        "nearest": "" if cpu.nearest is None else cpu.nearest.target,
        "code": [
            hashlib.sha256(Path(file).read_bytes()).hexdigest()
            for file in (__file__, fit_family.__code__.co_filename, _measuring(runtime).__file__)
        ],
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
