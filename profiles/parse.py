"""From the text of a profile to a ``Profile``: every mistake is reported with its field's path."""

import re
import tomllib
from collections.abc import Mapping
from typing import Final

from advisor.errors import ProfileError
from advisor.profiles.schema import (
    COMPUTE_DTYPES,
    FAMILIES,
    KINDS,
    SCHEMA,
    UNITS,
    Compute,
    Energy,
    Figure,
    Memory,
    Overhead,
    Profile,
)
from advisor.profiles.toml_table import Range, Table
from advisor.targets.platforms import PLATFORM_KEYS

CAPACITY: Final = Range(
    low=1e6,
    high=1e14,
    unit="bytes",
    hint="write bytes, not gigabytes: 80 GB is 80_000_000_000",
    whole=True,
)
BANDWIDTH: Final = Range(
    low=1e8,
    high=1e14,
    unit="bytes per second",
    hint="write bytes, not gigabytes or gigabits: 100 GB/s is 100e9, 100 Gbit/s is 12.5e9",
)
THROUGHPUT: Final = Range(
    low=1e8,
    high=1e17,
    unit="operations per second",
    hint="write single operations, two per multiply-accumulate: 989 TFLOPS is 989e12",
)
FRACTION: Final = Range(low=1e-3, high=1.0, unit="share of the peak", hint="write 60 % as 0.6")
OVERHEAD: Final = Range(
    low=1e-9, high=1e-1, unit="seconds", hint="write seconds: 5 microseconds is 5e-6"
)
CORES: Final = Range(low=1, high=4096, unit="cores", hint="count physical cores", whole=True)
JOULES: Final = Range(
    low=1e-15, high=1e-6, unit="joules", hint="write joules: 4 picojoules is 4e-12"
)


def parse_profile(text: str, file: str) -> Profile:
    """The profile that ``text`` (TOML) describes; ``file`` names it in errors.

    Raises:
        ProfileError: not TOML, or a field is missing, unknown, of the wrong type, out of range or
            inconsistent with another one. The message starts with the file and the field's path.
    """
    try:
        root = Table(values=tomllib.loads(text), file=file)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{file}: not a TOML file: {error}") from error
    _check_schema(root)
    root.allow(
        (
            *("schema", "name", "title", "aliases", "vendor", "family", "kind", "runtime"),
            *("notes", "sources", "platform", "cores", "memory", "compute", "efficiency"),
            *("overhead", "energy"),
        )
    )
    sources = _sources(root)
    compute = _compute(root, sources)
    has_cores = "cores" in root.values
    if not has_cores and any(entry.unit == "cpu" for entry in compute):
        raise root.fail("cores", "missing; a CPU throughput is scaled by threads over cores")
    return Profile(
        name=_name(root),
        title=root.text("title"),
        aliases=root.texts("aliases"),
        vendor=root.text("vendor"),
        family=root.text("family"),
        kind=root.choice("kind", KINDS),
        runtime=root.text("runtime"),
        platform=_platform(root),
        cores=root.figure("cores", sources, CORES) if has_cores else None,
        memory=_memory(root, sources),
        compute=compute,
        efficiency=_efficiency(root, sources),
        overhead=_overhead(root, sources),
        energy=_energy(root, sources) if "energy" in root.values else None,
        notes=root.texts("notes"),
    )


def _check_schema(root: Table) -> None:
    schema = root.need("schema")
    if schema != SCHEMA or isinstance(schema, bool):
        raise root.fail("schema", f"this version reads schema {SCHEMA}, the file says {schema!r}")


def _name(root: Table) -> str:
    name = root.text("name")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) or name == "host":
        raise root.fail(
            "name",
            f"{name!r} cannot name a profile: use lower-case letters, digits, '.', '_' and '-'; "
            "'host' is reserved",
        )
    return name


def _sources(root: Table) -> dict[str, str]:
    if "sources" not in root.values:
        return {}
    table = root.table("sources")
    return {key: table.text(key) for key in table.values}


def _platform(root: Table) -> dict[str, str]:
    if "platform" not in root.values:
        return {}
    table = root.table("platform")
    table.allow(PLATFORM_KEYS)
    facts = {key: table.text(key) for key in table.values}
    for key, value in facts.items():
        if not re.fullmatch(r"\d+(\.\d+)*", value):
            raise table.fail(key, f'expected a version such as "15" or "90", got {value!r}')
    return facts


def _memory(root: Table, sources: Mapping[str, str]) -> Memory:
    table = root.table("memory")
    core = "core_bandwidth_bytes_per_s"
    table.allow(("capacity_bytes", "bandwidth_bytes_per_s", "fraction", core))
    memory = Memory(
        capacity_bytes=table.figure("capacity_bytes", sources, CAPACITY),
        bandwidth_bytes_per_s=table.figure("bandwidth_bytes_per_s", sources, BANDWIDTH),
        fraction=table.figure("fraction", sources, FRACTION),
        core_bandwidth_bytes_per_s=(
            table.figure(core, sources, BANDWIDTH) if core in table.values else None
        ),
    )
    per_core = memory.core_bandwidth_bytes_per_s
    whole = memory.bandwidth_bytes_per_s.value
    if per_core is not None and per_core.value > whole:
        raise table.fail(
            core, f"one core draws {per_core.value:g} bytes/s but the whole memory gives {whole:g}"
        )
    return memory


def _compute(root: Table, sources: Mapping[str, str]) -> tuple[Compute, ...]:
    entries: list[Compute] = []
    for table in root.tables("compute"):
        table.allow(("unit", "dtype", "ops_per_s"))
        entry = Compute(
            unit=table.choice("unit", UNITS),
            dtype=table.choice("dtype", COMPUTE_DTYPES),
            ops_per_s=table.figure("ops_per_s", sources, THROUGHPUT),
        )
        if any((entry.unit, entry.dtype) == (other.unit, other.dtype) for other in entries):
            raise table.fail("dtype", f"{entry.dtype} of the {entry.unit} is given twice")
        entries.append(entry)
    return tuple(entries)


def _efficiency(root: Table, sources: Mapping[str, str]) -> dict[str, Figure]:
    table = root.table("efficiency")
    table.allow(FAMILIES)
    return {family: table.figure(family, sources, FRACTION) for family in FAMILIES}


def _overhead(root: Table, sources: Mapping[str, str]) -> Overhead:
    table = root.table("overhead")
    table.allow(("launch_s", "dispatch_s"))
    has_dispatch = "dispatch_s" in table.values
    return Overhead(
        launch_s=table.figure("launch_s", sources, OVERHEAD),
        dispatch_s=table.figure("dispatch_s", sources, OVERHEAD) if has_dispatch else None,
    )


def _energy(root: Table, sources: Mapping[str, str]) -> Energy:
    table = root.table("energy")
    table.allow(("joules_per_byte", "joules_per_op"))
    per_op = table.table("joules_per_op")
    per_op.allow(COMPUTE_DTYPES)
    return Energy(
        joules_per_byte=table.figure("joules_per_byte", sources, JOULES),
        joules_per_op={dtype: per_op.figure(dtype, sources, JOULES) for dtype in per_op.values},
    )
