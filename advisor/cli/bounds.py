"""Gates of the command line: ``--fail-if "size>12MB"`` turns a number into an exit code."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from advisor.budget import FIELDS, Budget
from advisor.errors import UsageError
from advisor.report.data import accuracy_drop, measured_first
from advisor.report.units import format_metric, format_quantity

if TYPE_CHECKING:
    from advisor.plan import Plan, Quantity

_OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_FORM: Final = re.compile(r"\s*(\w+)\s*([<>]=?)\s*(.+?)\s*")
_NAMES: Final = (*FIELDS, "divergence", "metric")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One condition that fails the run. field: of ``Metrics``, or "accuracy_drop"."""

    text: str
    field: str
    comparison: str
    limit: float


def parse_gate(text: str) -> Gate:
    """Read a condition such as "size>12MB", "latency>8ms", "divergence>0.01" or "metric<0.97".

    Raises:
        UsageError: not of that form, an unknown quantity, or an amount that cannot be read.
    """
    match = _FORM.fullmatch(text)
    if match is None or match[1] not in _NAMES:
        raise UsageError(
            f"cannot read --fail-if {text!r}; write QUANTITY>AMOUNT or QUANTITY<AMOUNT, such as "
            f'"size>12MB" or "metric<0.97"; quantities: {", ".join(_NAMES)}'
        )
    name, comparison, amount = match.groups()
    return Gate(
        text=text,
        field=FIELDS.get(name, name),
        comparison=comparison,
        limit=_read_amount(name, amount, text),
    )


def broken_gates(plan: Plan, gates: tuple[Gate, ...]) -> list[str]:
    """One sentence for every gate that ``plan`` does not pass.

    A number that the plan does not hold fails its gate: a gate that cannot be checked has not
    been passed.
    """
    metrics = measured_first(plan)
    sentences: list[str] = []
    for gate in gates:
        quantity: Quantity | None
        if gate.field == "accuracy_drop":
            quantity = accuracy_drop(plan, metrics)
        else:
            quantity = getattr(metrics, gate.field)
        if quantity is None:
            sentences.append(f"--fail-if {gate.text!r}: the plan does not know this number")
        elif _OPERATORS[gate.comparison](quantity.value, gate.limit):
            sentences.append(
                f"--fail-if {gate.text!r}: it is {format_quantity(gate.field, quantity)}, the "
                f"limit is {format_metric(gate.field, gate.limit)}"
            )
    return sentences


def _read_amount(name: str, amount: str, text: str) -> float:
    if name in FIELDS:
        limit = getattr(Budget.parse({name: amount}), FIELDS[name])
        return float(limit)
    try:
        value = float(amount)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"--fail-if {text!r}: {amount!r} is not a finite number")
    return value
