"""Numbers as people read them: SI prefixes (1 MB = 10^6 bytes) and three significant digits."""

from __future__ import annotations

from advisor.plan import Quantity

MEASURED_MARK = " ᵐ"
MODELLED_MARK = "≈ "
LEGEND = (
    "≈ modelled: computed from the hardware profile or predicted from calibration. "
    "ᵐ measured: obtained by running the simulation or the artifact. - not known."
)
UNKNOWN = "-"

_STEPS = {
    "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")),
    "J": ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"), (1e-9, "nJ")),
}
_UNIT_OF = {
    "size_bytes": "B",
    "file_bytes": "B",
    "memory_bytes": "B",
    "latency_s": "s",
    "energy_j": "J",
    "divergence": "",
    "metric": "",
    "partitions": "",
}


def format_number(value: float, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits and no exponent between 0.001 and 10^6."""
    text = f"{value:.{digits}g}"
    if "e" in text and 1e-3 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return text


def format_unit(value: float, unit: str) -> str:
    """``value`` (bytes, seconds or joules) with the largest prefix that keeps it at 1 or more."""
    steps = _STEPS[unit]
    if value == 0:
        return f"0 {unit}"
    for factor, name in steps:
        # 999.9996 kB prints as 1000 at three digits: step up at the rounding edge.
        if abs(value) >= factor * 0.9995:
            return f"{format_number(value / factor)} {name}"
    factor, name = steps[-1]
    return f"{format_number(value / factor)} {name}"


def format_bytes(value: float) -> str:
    """12_345_678 is "12.3 MB"."""
    return format_unit(value, "B")


def format_seconds(value: float) -> str:
    """0.0123 is "12.3 ms"."""
    return format_unit(value, "s")


def format_count(value: int) -> str:
    """1_234_567 is "1.23 M"; below a thousand, the number itself."""
    for factor, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= factor * 0.9995:
            return f"{format_number(value / factor)} {name}"
    return str(value)


def format_percent(fraction: float) -> str:
    """0.0123 is "1.23 %"."""
    return f"{format_number(fraction * 100)} %"


def format_metric(field: str, value: float) -> str:
    """A field of ``Metrics``, or "accuracy_drop", in its unit; no mark of its origin."""
    if field == "accuracy_drop":
        return format_percent(value)
    unit = _UNIT_OF[field]
    if unit:
        return format_unit(value, unit)
    return format_number(value, 4 if field == "metric" else 3)


def format_quantity(field: str, quantity: Quantity | None) -> str:
    """The value in its unit with the mark of its origin; a dash when it is not known."""
    if quantity is None:
        return UNKNOWN
    text = format_metric(field, quantity.value)
    if quantity.origin == "measured":
        return f"{text}{MEASURED_MARK}"
    return f"{MODELLED_MARK}{text}"
