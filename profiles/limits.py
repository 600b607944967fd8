"""What the values of a profile's fields may be: annotations that the schema puts on its fields."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Plausible values of a quantity, ends included; a value outside is taken for a unit mistake.

    whole: the value must be an integer. hint: how to write it right.
    """

    low: float
    high: float
    unit: str
    hint: str
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """What a string must match in full. hint: that in words."""

    regex: str
    hint: str


@dataclass(frozen=True, slots=True)
class OneOf:
    """The words that a string, or every string of a list, may be."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys that a table may have. required: it must have all of them."""

    names: tuple[str, ...]
    required: bool = False


@dataclass(frozen=True, slots=True)
class Inherited:
    """Marks a field that a profile may leave to the one it is ``like``."""


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
MULTIPLE: Final = Range(
    low=2, high=1024, unit="inputs and outputs", hint="write the width of a tile", whole=True
)
RANGES: Final = (CAPACITY, BANDWIDTH, THROUGHPUT, FRACTION, OVERHEAD, CORES, JOULES, MULTIPLE)
NAME: Final = Pattern(
    regex=r"(?!host$)[a-z0-9][a-z0-9._-]*",
    hint="use lower-case letters, digits, '.', '_' and '-'; 'host' is reserved",
)
VERSION: Final = Pattern(regex=r"\d+(\.\d+)*", hint='expected a version such as "15" or "90"')
