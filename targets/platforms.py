"""Compare the platform a scheme needs with the one a hardware profile has."""

import re
from collections.abc import Mapping
from typing import Final

from advisor.errors import UsageError

MINIMUM: Final = re.compile(r"(iOS|sm|vnni|opset )([1-9]\d*)")
"""What ``SchemeSupport.minimum`` may say. All but the last depend on the machine."""

PLATFORM_KEYS: Final = ("sm", "compute_capability", "ios", "macos", "vnni")
"""What a platform may state. "sm" and "compute_capability" are two names of one thing. "vnni" is 0
for an x86 processor without such instructions, and nothing is stated of other processors."""

_FIRST_COMMON_VERSION: Final = 26


def shortfall(minimum: str, platform: Mapping[str, str]) -> str:
    """Why ``platform`` is too old for ``minimum``, naming both; empty when it is not.

    A platform that says nothing about the kind of ``minimum`` is never too old. With both "ios"
    and "macos" given, both have to reach it, because one file ships to both.

    Raises:
        UsageError: an unknown key or a version that cannot be read.
    """
    for key in platform:
        if key not in PLATFORM_KEYS:
            known = ", ".join(PLATFORM_KEYS)
            raise UsageError(f"unknown platform key {key!r}; known keys: {known}")
    match = MINIMUM.fullmatch(minimum)
    if match is None:
        return ""
    kind, needed = match[1], int(match[2])
    least = {
        "sm": {"sm": needed, "compute_capability": needed},
        "iOS": {"ios": needed, "macos": macos_of(needed)},
        "vnni": {"vnni": needed},
    }.get(kind, {})
    for key, version in platform.items():
        if key in least:
            found = _read_version(key, version)
            if found < least[key] and key == "vnni":
                return (
                    "needs VNNI: without it the processor adds products of 8-bit integers in "
                    "16 bits, which overflow"
                )
            if found < least[key]:
                label = {"ios": "iOS", "macos": "macOS"}.get(key, "sm")
                return f"needs {label}{least[key]}, the profile has {label}{found}"
    return ""


def macos_of(ios: int) -> int:
    """The macOS released with an iOS version: three less up to iOS18, the same from 26 on."""
    return ios if ios >= _FIRST_COMMON_VERSION else ios - 3


def _read_version(key: str, version: str) -> int:
    """Major version of a system; compute capability without its dot."""
    if key == "vnni":
        match = re.fullmatch(r"([01])", version)
        example = "'0' or '1'"
    elif key in {"ios", "macos"}:
        match = re.fullmatch(r"(?:i|mac)?(?:OS)?\s*(\d+)(?:\.\d+)*", version)
        example = "'17' or '17.4'"
    else:
        match = re.fullmatch(r"(?:sm_?)?(\d{2,3})[af]?|(\d{1,2})\.(\d)", version)
        example = "'89', 'sm89' or '8.9'"
    if match is None:
        raise UsageError(f"{key}: cannot read the version {version!r}; write it like {example}")
    return int("".join(part for part in match.groups() if part))
