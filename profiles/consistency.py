"""Fields of a profile that contradict each other, and numbers that contradict what they quote."""

import re
from collections.abc import Collection, Iterator
from itertools import combinations
from math import isclose
from typing import Final, Literal

from advisor.profiles.schema import UNITS, Figure, Profile
from advisor.profiles.toml_table import Table

Dimension = Literal["bytes", "bytes per second", "operations per second"]

PREFIXES: Final = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
BINARY: Final = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
QUANTITY: Final = re.compile(
    r"(?<![\w.])(\d[\d,_]*(?:\.\d+)?)[\s-]*([kKMGTP]i?|)"
    r"(?:(B/s|Bps|B/sec)|(bit/s|b/s|bps|bits/s)|(FLOPS|FLOPs|FLOP/s|OPS|OPs|OP/s)|(B|bytes))(?!\w)"
)
"""A number with the unit of a rate or a capacity: "3,350 GB/s", "100 Gbit/s", "67 TFLOPS"."""

AGREEMENT: Final = {"bytes": 0.08, "bytes per second": 0.01, "operations per second": 0.01}
"""Relative difference within which a number is what its source states. A source's GB of capacity
may mean 2^30 bytes."""

SPREAD: Final = 256
"""The most by which one unit's fastest dtype exceeds its slowest (fp4 tensor cores against float32
cores: 120); three more zeros are a unit mistake."""

BALANCE: Final = (0.05, 1e5)
"""Peak operations per byte of main memory, from microcontrollers to matrix units with an SRAM."""


def check_profile(profile: Profile, root: Table) -> None:
    """Raise ProfileError, with the field's path, where two statements cannot both hold."""
    units = {entry.unit for entry in profile.compute}
    _check_units(profile, root, units)
    _check_compute(profile, root)
    _check_memory(profile, root)
    for path, figure, dimension in _quoted(profile):
        _check_quote(root, path, figure, dimension)


def _check_units(profile: Profile, root: Table, units: Collection[str]) -> None:
    has = ", ".join(unit for unit in UNITS if unit in units)
    if "cpu" in units and profile.cores is None:
        raise root.fail("cores", "missing; a CPU throughput is scaled by threads over cores")
    if profile.kind != "soc" and profile.kind not in units:
        raise root.fail("kind", f"a {profile.kind} needs a throughput of its own; given: {has}")
    for n, unit in enumerate(profile.units):
        if unit not in units:
            raise root.fail(f"units[{n}]", f"no [[compute]] table is of the {unit}; given: {has}")
    for alias, meant in profile.unit_aliases.items():
        if not set(meant.split("+")) <= set(units):
            raise root.fail(
                f"unit_aliases.{alias}", f"no [[compute]] table is of {meant!r}; given: {has}"
            )
    for name in profile.by_unit:
        if name not in units:
            raise root.fail(f"by_unit.{name}", f"no [[compute]] table is of it; given: {has}")


def _check_compute(profile: Profile, root: Table) -> None:
    entries = tuple(enumerate(profile.compute))
    whole = profile.memory.bandwidth_bytes_per_s.value
    for (_, one), (n, other) in combinations(entries, 2):
        if one.unit != other.unit:
            continue
        if one.dtype == other.dtype:
            problem = f"{other.dtype} of the {other.unit} is given twice"
            raise root.fail(f"compute[{n}].dtype", problem)
        pair = sorted((one.ops_per_s.value, other.ops_per_s.value))
        if pair[1] > SPREAD * pair[0]:
            raise root.fail(
                f"compute[{n}].ops_per_s.value",
                f"{other.ops_per_s.value:g} operations per second in {other.dtype}, but "
                f"{one.ops_per_s.value:g} in {one.dtype}: dtypes of one unit differ by less than "
                f"{SPREAD} times; was one given in other units?",
            )
    low, high = BALANCE
    for n, entry in entries:
        if not low <= entry.ops_per_s.value / whole <= high:
            raise root.fail(
                f"compute[{n}].ops_per_s.value",
                f"{entry.ops_per_s.value:g} operations per second cannot go with "
                f"{whole:g} bytes per second of memory: {low:g} to {high:g} operations per byte "
                "are plausible; was one given in other units?",
            )


def _check_memory(profile: Profile, root: Table) -> None:
    one, whole = profile.memory.core_bandwidth_bytes_per_s, profile.memory.bandwidth_bytes_per_s
    if one is not None and one.value > whole.value:
        raise root.fail(
            "memory.core_bandwidth_bytes_per_s",
            f"one core draws {one.value:g} bytes/s but the whole memory gives {whole.value:g}",
        )


def _quoted(profile: Profile) -> Iterator[tuple[str, Figure, Dimension]]:
    memory = profile.memory
    yield "memory.capacity_bytes", memory.capacity_bytes, "bytes"
    yield "memory.bandwidth_bytes_per_s", memory.bandwidth_bytes_per_s, "bytes per second"
    for n, entry in enumerate(profile.compute):
        yield f"compute[{n}].ops_per_s", entry.ops_per_s, "operations per second"


def _check_quote(root: Table, path: str, figure: Figure, dimension: Dimension) -> None:
    """A published number must be one of those that ``says`` quotes, where it quotes any."""
    if figure.origin != "published":
        return
    stated = quantities(figure.says, dimension)
    tolerance = AGREEMENT[dimension]
    if stated and not any(
        isclose(figure.value, each, rel_tol=tolerance) for each in stated.values()
    ):
        plausible = " or ".join(f"{value:g} ({text})" for text, value in stated.items())
        raise root.fail(
            f"{path}.value",
            f"{figure.value:g} {dimension} is not what says quotes: {plausible}; "
            "b is a bit and B a byte, G is 1e9 and Gi 2^30",
        )


def quantities(text: str, dimension: Dimension) -> dict[str, float]:
    """Every quantity of that dimension in ``text``, as written, with its value in SI base units."""
    found: dict[str, float] = {}
    for match in QUANTITY.finditer(text):
        number, prefix, byte_rate, bit_rate, operations, size = match.groups()
        scale = BINARY.get(prefix) or PREFIXES.get(prefix)
        of: dict[Dimension, object] = {
            "bytes": size,
            "bytes per second": byte_rate or bit_rate,
            "operations per second": operations,
        }
        if scale is not None and of[dimension]:
            value = float(number.replace(",", "").replace("_", "")) * scale
            found[match[0]] = value / 8 if bit_rate else value
    return found
