"""What a hardware profile says: figures with their origin and source, as frozen data.

A profile describes one device that a model is deployed to. Every number is a ``Figure``: the value
in SI base units (bytes, seconds, operations, joules), how it was obtained and where it is from.

The annotations of the fields say what a file may hold (``advisor.profiles.limits``). The reader
(``advisor.profiles.read``) and the JSON Schema (``advisor.profiles.json_schema``) both follow them.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Final, Literal

from advisor.formats import SCHEMES
from advisor.profiles.limits import (
    BANDWIDTH,
    CAPACITY,
    CORES,
    FRACTION,
    JOULES,
    MULTIPLE,
    NAME,
    OVERHEAD,
    THROUGHPUT,
    VERSION,
    Inherited,
    Keys,
    OneOf,
)
from advisor.targets.platforms import PLATFORM_KEYS

SCHEMA: Final = 1
"""Version of the TOML format. A profile of another version is refused, never guessed at."""

Kind = Literal["cpu", "gpu", "npu", "tpu", "soc"]
KINDS: Final[tuple[Kind, ...]] = ("cpu", "gpu", "npu", "tpu", "soc")
"""What a device is; "soc" has several compute units on one memory."""

Unit = Literal["cpu", "gpu", "npu", "tpu"]
UNITS: Final[tuple[Unit, ...]] = ("cpu", "gpu", "npu", "tpu")
"""Where a throughput is available."""

FigureOrigin = Literal["published", "derived", "measured", "estimate"]
FIGURE_ORIGINS: Final[tuple[FigureOrigin, ...]] = ("published", "derived", "measured", "estimate")
"""published: the source states it. derived: computed from what sources state; the formula is in
``says``. measured: timed on the device. estimate: an assumption, always open to correction."""

COMPUTE_DTYPES: Final = (
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3",
    "float8_e5m2",
    "fp4",
    "int8",
    "int4",
)
"""Arithmetic a device can have a throughput for. Storage-only formats (nf4, look-up tables) are
expanded to one of these before they are multiplied."""

FAMILIES: Final = ("linear", "conv", "depthwise", "embedding", "elementwise")
"""Operator families with an efficiency of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of a profile.

    source: title and address of the document. says: what it states, or the formula, or why an
    estimate was chosen.
    """

    value: float
    origin: FigureOrigin
    source: str
    says: str


Efficiency = Annotated[Mapping[str, Figure], Keys(FAMILIES, required=True), FRACTION]
"""By operator family, the share of the peak that kernels reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The device's main memory.

    bandwidth_bytes_per_s: peak, all cores together. core_bandwidth_bytes_per_s: the most that one
    CPU core can draw, where that is less. fraction: share of the peak that kernels sustain.
    cache_bytes: memory on the chip that all units share; what an operator reads and writes in it
    takes no time of the main memory.
    """

    capacity_bytes: Annotated[Figure, CAPACITY]
    bandwidth_bytes_per_s: Annotated[Figure, BANDWIDTH]
    fraction: Annotated[Figure, FRACTION, Inherited()]
    core_bandwidth_bytes_per_s: Annotated[Figure | None, BANDWIDTH] = None
    cache_bytes: Annotated[Figure | None, CAPACITY] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """Peak dense throughput of one unit in one dtype; a multiply-accumulate is two operations.

    multiple: what the unit fills the inputs and the outputs of a product up to, where it multiplies
    whole tiles only.
    """

    unit: Unit
    dtype: Annotated[str, OneOf(COMPUTE_DTYPES)]
    ops_per_s: Annotated[Figure, THROUGHPUT]
    multiple: Annotated[Figure | None, MULTIPLE] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Time that does not depend on the amount of work.

    launch_s: per operator. product_s: per matrix product or convolution in place of it, where even
    the smallest takes longer; None when nothing is known of it. dispatch_s: per forward pass, where
    a driver or another process has to be woken; None when nothing is known of it.
    """

    launch_s: Annotated[Figure, OVERHEAD, Inherited()]
    product_s: Annotated[Figure | None, OVERHEAD, Inherited()] = None
    dispatch_s: Annotated[Figure | None, OVERHEAD, Inherited()] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Energy per unit of work: joules_per_op by dtype, joules_per_byte of main-memory traffic."""

    joules_per_byte: Annotated[Figure, JOULES]
    joules_per_op: Annotated[Mapping[str, Figure], Keys(COMPUTE_DTYPES), JOULES]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFigures:
    """What differs when one compute unit alone is used; None: as for the whole device."""

    efficiency: Efficiency | None = None
    overhead: Overhead | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One device. Throughput figures are for the whole device, all cores included.

    unit_aliases: by alias the compute unit, or units such as "npu+cpu", that it stands for alone.
    family: devices of one design, listed together. runtime: name of the runtime that plans for
    this device use unless told otherwise. platform: versions that a scheme's minimum is compared
    with (``advisor.targets.platforms``), such as {"sm": "90"} or {"macos": "15"}. cores: CPU cores,
    None when no throughput depends on them. compute: every unit's throughput. units: those of them
    that plans use, none named: all. efficiency: by operator family, share of the peak that kernels
    reach. by_unit: efficiency and overhead of one unit alone. schemes: the only ones that the
    device itself runs, none named: the runtime alone decides; a layer that can take none of them
    stays in float, off the device. options: how files for it are written unless asked otherwise.
    """

    name: Annotated[str, NAME]
    title: str
    aliases: tuple[str, ...] = ()
    unit_aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    vendor: str
    family: str
    kind: Kind
    runtime: str
    units: tuple[Unit, ...] = ()
    schemes: Annotated[tuple[str, ...], OneOf(tuple(SCHEMES))] = ()
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    notes: tuple[str, ...] = ()
    platform: Annotated[Mapping[str, str], Keys(PLATFORM_KEYS), VERSION] = field(
        default_factory=dict[str, str]
    )
    cores: Annotated[Figure | None, CORES] = None
    memory: Memory
    compute: tuple[Compute, ...]
    efficiency: Annotated[Efficiency, Inherited()]
    overhead: Annotated[Overhead, Inherited()]
    by_unit: Annotated[Mapping[str, UnitFigures], Keys(UNITS), Inherited()] = field(
        default_factory=dict[str, UnitFigures]
    )
    energy: Energy | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the content: comments, key order and spacing of the file do not change it."""
        canonical = json.dumps(asdict(self), sort_keys=True, ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def offers(self) -> tuple[Compute, ...]:
        """The throughputs of the units that plans use."""
        return tuple(each for each in self.compute if not self.units or each.unit in self.units)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Dtypes with a throughput of their own, fastest first (ties by name)."""
        peaks: dict[str, float] = {}
        for entry in self.offers:
            peaks[entry.dtype] = max(peaks.get(entry.dtype, 0.0), entry.ops_per_s.value)
        return tuple(sorted(peaks, key=lambda dtype: (-peaks[dtype], dtype)))
