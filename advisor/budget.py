"""Budgets: what the user allows a plan to cost, read from words such as "4GB,8ms"."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from difflib import get_close_matches
from typing import Final

from advisor.errors import BudgetError
from advisor.formats import SCHEMES

FIELDS: Final[dict[str, str]] = {
    "memory": "memory_bytes",
    "size": "size_bytes",
    "latency": "latency_s",
    "energy": "energy_j",
    "accuracy_drop": "accuracy_drop",
}
"""Name in a budget -> field. The first four fields are also quantities of a search problem."""

_BYTES: Final = {
    "b": Decimal(1),
    **{f"{p}b": Decimal(1000) ** (i + 1) for i, p in enumerate("kmgt")},
    **{f"{p}ib": Decimal(1024) ** (i + 1) for i, p in enumerate("kmgt")},
}
_SECONDS: Final = {
    "s": Decimal(1),
    "ms": Decimal("1e-3"),
    "us": Decimal("1e-6"),
    "ns": Decimal("1e-9"),
}
_JOULES: Final = {"j": Decimal(1), "mj": Decimal("1e-3"), "uj": Decimal("1e-6")}
_SHARES: Final = {"%": Decimal("1e-2")}
_UNITS: Final = {
    "memory": _BYTES,
    "size": _BYTES,
    "latency": _SECONDS,
    "energy": _JOULES,
    "accuracy_drop": _SHARES,
}
_BASE: Final = {
    "memory": "B",
    "size": "B",
    "latency": "s",
    "energy": "J",
    "accuracy_drop": "",
}
_SPELLED: Final = {
    "memory": "B, KB, MB, GB, TB, KiB, MiB, GiB, TiB",
    "size": "B, KB, MB, GB, TB, KiB, MiB, GiB, TiB",
    "latency": "s, ms, us, ns",
    "energy": "J, mJ, uJ",
    "accuracy_drop": "%, or a plain share such as 0.01",
}
_AMOUNT: Final = re.compile(
    r"(?P<number>[+-]?(?:\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?|nan|inf(?:inity)?))"
    r"\s*(?P<unit>[^\d\s]*)",
    re.IGNORECASE,
)
_MULTIPLE: Final = re.compile(r"(?P<factor>[^\sx]+)\s*x\s+(?P<of>\S+)", re.IGNORECASE)
INT8: Final = "int8"
"""The name, in a relative latency, of the faster of the uniform plans of ``INT8_SCHEMES``."""

INT8_SCHEMES: Final = ("w8a8", "w8a8-dynamic")
_EXAMPLES: Final = (
    'examples: "4GB" (memory), "8ms" (latency), "1.05x int8" (latency), "4GB,8ms", "size=20MB", '
    '{"memory": "4GB", "size": "20MB", "latency": "8ms", "energy": "5mJ", "accuracy_drop": "1%"}'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiple:
    """A latency as a multiple of that of a uniform plan, such as 1.05 times all-int8's.

    of: a scheme, which every layer takes that can, or ``INT8``.
    """

    factor: float
    of: str

    def schemes(self) -> tuple[str, ...]:
        """The schemes of the uniform plans, the fastest of which counts."""
        return INT8_SCHEMES if self.of == INT8 else (self.of,)

    def seconds(self, uniform: Mapping[str, float]) -> float:
        """The latency. uniform: seconds of uniform plans, by scheme.

        Raises:
            BudgetError: there is no such plan.
        """
        found = [uniform[scheme] for scheme in self.schemes() if scheme in uniform]
        if not found:
            raise BudgetError(
                f"the latency budget is {self.describe()}, but no layer can take {self.of} here; "
                f"latencies can be given as multiples of {', '.join(uniform)}"
            )
        return self.factor * min(found)

    def describe(self) -> str:
        """As it is written in a budget."""
        return f"{_plain(self.factor)}x {self.of}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Upper limits of a plan; None: no limit.

    memory_bytes: see ``Metrics``; without the runtime itself. size_bytes: weights on disk.
    latency_s and energy_j: one forward at the deployment batch. accuracy_drop: share of the metric
    that may be lost, between 0 and 1. latency_multiple: what ``latency_s`` follows from, once
    ``resolved`` knows the uniform plan's.

    Raises:
        BudgetError: a limit that is not a positive finite number.
    """

    memory_bytes: float | None = None
    size_bytes: float | None = None
    latency_s: float | None = None
    energy_j: float | None = None
    accuracy_drop: float | None = None
    latency_multiple: Multiple | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and not isinstance(value, Multiple):
                object.__setattr__(self, item.name, _checked(item.name, value))

    @classmethod
    def parse(cls, value: str | Mapping[str, str | float | None] | Budget | None) -> Budget:
        """Read a budget.

        A string is a comma-separated list: a bare amount is memory (bytes), latency (seconds),
        energy (joules) or accuracy_drop (percent) by its unit; ``name=amount`` says which. In a
        mapping the values are such amounts, numbers in bytes, seconds, joules and shares, or None.
        "1.05x int8" is a latency too: 1.05 times that of the faster uniform int8 plan; "0.5x fp32"
        and so on for any scheme.
        KB, MB, GB, TB are powers of 1000; KiB, MiB, GiB, TiB powers of 1024. ``describe`` reads
        back as the same budget.

        Raises:
            BudgetError: unknown unit or name, missing unit, bits, a limit given twice, or an
                amount that is not a positive finite number.
        """
        match value:
            case None:
                return cls()
            case Budget():
                return value
            case str():
                return _collect(_split(value))
            case Mapping():
                return _collect((_named(name), amount) for name, amount in value.items())
            case _:
                raise BudgetError(
                    f"a budget is text, a mapping, a Budget or None, not "
                    f"{type(value).__name__}; {_EXAMPLES}"
                )

    @classmethod
    def within(cls, limits: Mapping[str, float]) -> Budget:
        """From limits by field, as ``bounds`` gives them."""
        return cls(
            memory_bytes=limits.get("memory_bytes"),
            size_bytes=limits.get("size_bytes"),
            latency_s=limits.get("latency_s"),
            energy_j=limits.get("energy_j"),
            accuracy_drop=limits.get("accuracy_drop"),
        )

    def bounds(self) -> dict[str, float]:
        """The limits that depend on the assignment alone, by quantity (accuracy_drop left out)."""
        found = {field: getattr(self, field) for field in FIELDS.values()}
        return {
            field: value
            for field, value in found.items()
            if value is not None and field != "accuracy_drop"
        }

    def describe(self) -> str:
        """Canonical text in base units, such as "size<=12000000B,latency<=0.008s", or "none"."""
        limits = {
            name: f"{_plain(value)}{_BASE[name]}"
            for name, field in FIELDS.items()
            if (value := getattr(self, field)) is not None
        }
        if self.latency_multiple is not None:
            limits["latency"] = self.latency_multiple.describe()
        return ",".join(f"{name}<={limit}" for name, limit in limits.items()) or "none"

    def resolved(self, uniform: Mapping[str, float]) -> Budget:
        """With ``latency_s`` in place of a multiple. uniform: seconds by scheme.

        Raises:
            BudgetError: there is no such uniform plan.
        """
        if self.latency_multiple is None:
            return self
        return replace(self, latency_s=self.latency_multiple.seconds(uniform))


def format_amount(quantity: str, value: float) -> str:
    """``value`` for a reader, four digits: format_amount("size_bytes", 12e6) is "12 MB"."""
    scales = {
        "memory_bytes": (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3), ("B", 1.0)),
        "latency_s": (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)),
        "energy_j": (("J", 1.0), ("mJ", 1e-3), ("uJ", 1e-6)),
    }
    scales["size_bytes"] = scales["memory_bytes"]
    if quantity not in scales:
        return f"{value:.4g}"
    unit, scale = next(
        ((u, s) for u, s in scales[quantity] if abs(value) >= s), scales[quantity][-1]
    )
    return f"{value / scale:.4g} {unit}"


def round_up(value: float, digits: int = 4) -> float:
    """The smallest number of ``digits`` significant digits that is at least ``value`` (>= 0)."""
    if value == 0:
        return 0.0
    exponent = math.floor(math.log10(value)) - digits + 1
    step = Decimal(1).scaleb(exponent)
    return float(math.ceil(Decimal(value) / step) * step)


def _collect(items: Iterable[tuple[str, str | float | None]]) -> Budget:
    limits: dict[str, float | Multiple | None] = {}
    for name, amount in items:
        if name in limits:
            raise BudgetError(
                f"the budget limits {name} twice; give one amount per limit "
                f'(the size on disk is written "size=20MB"); {_EXAMPLES}'
            )
        limits[name] = _read(name, amount) if isinstance(amount, str) else amount
    multiple = limits.get("latency")
    amounts = {
        FIELDS[name]: limit
        for name, limit in limits.items()
        if limit is not None and not isinstance(limit, Multiple)
    }
    budget = Budget.within(amounts)
    return replace(budget, latency_multiple=multiple) if isinstance(multiple, Multiple) else budget


def _split(text: str) -> list[tuple[str, str | float | None]]:
    if text.strip().lower() == "none":
        return []
    items: list[tuple[str, str | float | None]] = []
    for part in text.split(","):
        name, equals, amount = part.partition("=")
        if equals:
            items.append((_named(name.strip().removesuffix("<").strip()), amount))
        else:
            items.append((_name_of(part), part))
    return items


def _named(name: object) -> str:
    if isinstance(name, str) and name in FIELDS:
        return name
    near = get_close_matches(str(name).lower(), FIELDS, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise BudgetError(
        f"unknown budget {name!r}{hint} A budget limits {', '.join(FIELDS)}; {_EXAMPLES}"
    )


def _name_of(part: str) -> str:
    if _MULTIPLE.fullmatch(part.strip()):
        return "latency"
    unit = _unit(_match(part)["unit"], part)
    for name in ("memory", "latency", "energy", "accuracy_drop"):
        if unit in _UNITS[name]:
            return name
    if not unit:
        raise BudgetError(
            f"the budget {part.strip()!r} has no unit; write the unit, and a point (not a comma) "
            f"before decimals; {_EXAMPLES}"
        )
    raise _unknown_unit(unit, part, _UNITS)


def _read(name: str, text: str) -> float | Multiple:
    multiple = _MULTIPLE.fullmatch(text.strip())
    if multiple is not None and name == "latency":
        return _read_multiple(multiple, text)
    match = _match(text)
    unit = _unit(match["unit"], text)
    number = match["number"]
    if not unit and name != "accuracy_drop":
        raise BudgetError(
            f"the {name} budget {text.strip()!r} has no unit; units of {name}: {_SPELLED[name]} "
            f"(a number that is not text is read in {_BASE[name]}); {_EXAMPLES}"
        )
    if unit and unit not in _UNITS[name]:
        raise _unknown_unit(unit, text, [name])
    if not Decimal(number).is_finite() or Decimal(number) <= 0:
        raise _not_positive(name, text.strip())
    # Decimal keeps "0.3ms" the nearest float to 0.0003, which 0.3 * 1e-3 is not.
    return float(Decimal(number) * (_UNITS[name][unit] if unit else 1))


def _read_multiple(match: re.Match[str], text: str) -> Multiple:
    of = match["of"].lower()
    if of != INT8 and of not in SCHEMES:
        near = get_close_matches(of, [INT8, *SCHEMES], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise BudgetError(
            f"the latency budget {text.strip()!r} names no scheme; {hint}Write int8, or a scheme "
            f"such as fp32; {_EXAMPLES}"
        )
    number = _AMOUNT.fullmatch(match["factor"])
    if number is None or number["unit"]:
        raise BudgetError(f"the budget {text.strip()!r} cannot be read; {_EXAMPLES}")
    factor = Decimal(number["number"])
    if not factor.is_finite() or factor <= 0:
        raise _not_positive("latency", text.strip())
    return Multiple(factor=float(factor), of=of)


def _match(text: str) -> re.Match[str]:
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise BudgetError(f"the budget {text.strip()!r} cannot be read; {_EXAMPLES}")
    return match


def _unit(spelled: str, text: str) -> str:
    unit = spelled.replace("\N{MICRO SIGN}", "u").replace("\N{GREEK SMALL LETTER MU}", "u")
    is_prefixed_bit = unit.endswith("b") and unit[:-1].lower() != unit[:-1]
    if "bit" in unit.lower() or unit == "b" or is_prefixed_bit:
        raise BudgetError(
            f"the budget {text.strip()!r} is in bits; budgets are in bytes: write a capital B, "
            f'as in "4GB" or "512MiB"'
        )
    if unit.lower() == "mj" and unit[0] == "M":
        raise BudgetError(
            f'the budget {text.strip()!r} reads as megajoules; write "mJ" for millijoules, or the '
            f"amount in J"
        )
    return unit.lower()


def _unknown_unit(unit: str, text: str, names: Iterable[str]) -> BudgetError:
    known = dict.fromkeys(_SPELLED[name] for name in names)
    spelled = [
        word for words in known for word in words.split(", ") if word.isalpha() and len(word) > 1
    ]
    near = get_close_matches(unit, [word.lower() for word in spelled], n=1, cutoff=0.6)
    hint = next((f"; did you mean {w!r}?" for w in spelled if near and w.lower() == near[0]), ".")
    return BudgetError(
        f"the unit of {text.strip()!r} cannot be used{hint} Units that can be used here: "
        f"{'; '.join(known)}; {_EXAMPLES}"
    )


def _checked(field: str, value: object) -> float:
    name = next((name for name, known in FIELDS.items() if known == field), field)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BudgetError(
            f"the {name} budget must be text or a number, not {type(value).__name__} "
            f"({value!r}); {_EXAMPLES}"
        )
    if not math.isfinite(value) or value <= 0:
        raise _not_positive(name, repr(value))
    if field == "accuracy_drop" and value >= 1:
        raise BudgetError(
            f"an accuracy_drop of {value!r} is all of the metric or more; it is a share below 1, "
            f'such as 0.01 or "1%"'
        )
    return float(value)


def _not_positive(name: str, text: str) -> BudgetError:
    return BudgetError(
        f"the {name} budget {text} is not a positive finite number; leave {name} out for no "
        f"limit; {_EXAMPLES}"
    )


def _plain(value: float) -> str:
    return repr(int(value)) if value.is_integer() and abs(value) < 2**63 else repr(value)
