"""What a benchmark on the device itself says about the profile that a plan was made with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from advisor.errors import PlanError, ProfileError
from advisor.planfile import read_plan
from advisor.profiles.correct import Observation, correct_profile
from advisor.profiles.loader import load_profile, profile_names
from advisor.profiles.parse import parse_profile
from advisor.profiles.write import profile_toml
from advisor.targets.coreml.ondevice import PACKAGE, SCHEMA, digest

if TYPE_CHECKING:
    from advisor.plan import Plan
    from advisor.profiles.schema import Profile

RUNTIME: Final = "coreml"
PLAUSIBLE: Final = 100.0
"""A device that is this many times slower or faster than its profile is another device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTimes:
    """The content of benchmark.json.

    chip: as macOS names it. system: with its version. measured: when, ISO 8601. seconds: median of
    one forward by what Core ML was allowed to use: cpu, gpu, npu (each with the CPU) or all.
    failed: why others have no time.
    """

    chip: str
    system: str
    measured: str
    package_sha256: str
    seconds: Mapping[str, float]
    failed: Mapping[str, str]


def correct_by_benchmark(
    benchmark: Path, name: str, *, plan: Path | None = None, profile: Path | None = None
) -> str:
    """The TOML text of a profile by which the benchmarked plan takes as long as it did.

    name: of the profile. plan: the artifact's folder, None where the file is in it. profile: the
    TOML file that the plan was made for, None where it was a profile's name.

    Raises:
        ProfileError: the file is no benchmark of that plan's package on that profile's device, or
            holds times that cannot be; or the profile is not the one the plan was made with.
        PlanError: the folder holds no plan for Core ML with a modelled latency.
    """
    times = read_times(benchmark)
    folder = benchmark.parent if plan is None else plan
    made = read_plan(folder)
    modelled_s = _modelled(made, folder)
    source = _profile_of(made, profile)
    _check_device(times, source, benchmark)
    _check_package(times, folder, benchmark)
    unit = unit_of(source)
    if unit not in times.seconds:
        why = times.failed.get(unit, "it was not asked for")
        raise ProfileError(
            f"{benchmark}: the plan is for {source.name}, which is compared with --units {unit}, "
            f"but that has no time ({why}); measure it again"
        )
    seen = Observation(
        modelled_s=modelled_s,
        measured_s=times.seconds[unit],
        source=(
            f"benchmark.py with compute units {unit!r} on {times.chip}, {times.system}, "
            f"{times.measured}, package {times.package_sha256}"
        ),
    )
    if not 1 / PLAUSIBLE <= seen.factor <= PLAUSIBLE:
        raise ProfileError(
            f"{benchmark}: {seen.measured_s:g} s of one forward where {source.name} has "
            f"{seen.modelled_s:g} s: more than {PLAUSIBLE:g} times apart, so something else was "
            "measured; see that the Mac was idle and the package is the plan's"
        )
    text = profile_toml(
        correct_profile(source, seen, name),
        [
            f"{source.name}, corrected: every time is {seen.factor:.4g} times as long.",
            f"Measured {times.measured} on {times.chip}, {times.system}; see docs/profiles.md.",
        ],
    )
    parse_profile(text, f"{name}.toml")  # what cannot be loaded must not be written
    return text


def unit_of(profile: Profile) -> str:
    """Which measurement a plan for the profile is compared with: what it lets Core ML use."""
    used = {each.unit for each in profile.offers} - {"cpu"}
    if not used:
        return "cpu"
    return next(iter(used)) if len(used) == 1 else "all"


def read_times(path: Path) -> DeviceTimes:
    """Read benchmark.json.

    Raises:
        ProfileError: missing, damaged, of another schema, not of a Mac, or with a time that is no
            positive number.
    """
    try:
        kept: Any = json.loads(path.read_text(encoding="utf-8"))
        if kept["schema"] != SCHEMA:
            raise ProfileError(
                f"{path}: schema {kept['schema']!r}, this version reads {SCHEMA}; run the "
                "benchmark.py that this version writes"
            )
        units: Mapping[str, Any] = kept["units"]
        times = DeviceTimes(
            **{key: _text(kept[key]) for key in _TEXTS},
            seconds={unit: _seconds(path, unit, each["median_s"]) for unit, each in units.items()},
            failed={str(unit): str(why) for unit, why in kept["failed"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ProfileError):
            raise
        raise ProfileError(
            f"{path}: not what benchmark.py writes ({type(error).__name__}: {error}); run it in "
            "the artifact's folder on the device"
        ) from error
    if not times.chip or not times.system.startswith("macOS"):
        raise ProfileError(f"{path}: measured on {times.system}; Core ML runs on macOS only")
    return times


_TEXTS: Final = ("chip", "system", "measured", "package_sha256")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _seconds(path: Path, unit: str, value: object) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not (math.isfinite(seconds := float(cast("float", value))) and seconds > 0):
        raise ProfileError(f"{path}: units.{unit}.median_s: {value!r} is no positive time")
    return seconds


def _modelled(plan: Plan, folder: Path) -> float:
    latency = plan.predicted.latency_s
    if plan.runtime != RUNTIME:
        raise PlanError(f"the plan in {folder} is for {plan.runtime}, not for Core ML")
    if latency is None or latency.origin != "modelled" or latency.value <= 0:
        raise PlanError(f"the plan in {folder} has no modelled latency to correct; plan again")
    return latency.value


def _profile_of(plan: Plan, file: Path | None) -> Profile:
    named = plan.target.partition(":")[0] in profile_names()
    if file is None and not named:
        raise ProfileError(
            f"the plan is for {plan.target!r}, a file of yours; name it with --profile"
        )
    found = load_profile(plan.target if file is None else file)
    if found.digest != plan.provenance.profile_digest:
        raise ProfileError(
            f"the profile {found.name!r} is not the one that the plan was made with "
            f"({plan.target!r}), or has changed since; plan and measure again"
        )
    return found


def _check_device(times: DeviceTimes, profile: Profile, path: Path) -> None:
    device = profile.title.partition(" (")[0]
    alias = times.chip.lower().replace(" ", "-")
    if times.chip != device and alias not in profile.aliases:
        raise ProfileError(
            f"{path}: measured on {times.chip}, but the plan is for {profile.name} ({device}); "
            f"plan for the device that it runs on (advisor profiles lists them)"
        )


def _check_package(times: DeviceTimes, folder: Path, path: Path) -> None:
    package = folder / PACKAGE
    if not package.is_dir():
        raise PlanError(f"{folder} has no {PACKAGE}; name the folder that was measured with --plan")
    found = digest(package)
    if found != times.package_sha256:
        raise ProfileError(
            f"{path}: of another package (SHA-256 {times.package_sha256}) than the plan's in "
            f"{folder} ({found}); name the folder that was measured with --plan"
        )
