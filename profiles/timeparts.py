"""Where the time of an operator, a layer or a whole forward goes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

BoundBy = Literal["compute", "memory", "overhead", "boundaries", "timed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeParts:
    """Seconds by what they are spent on; they add up to the whole.

    compute_s: arithmetic, of operators that it takes longer than their traffic. memory_s: traffic,
    of the others. overhead_s: launches and dispatch. boundary_s: quantizing, dequantizing, and
    passing between a delegate and the runtime. timed_s: measured as a whole, so not told apart.
    """

    compute_s: float = 0.0
    memory_s: float = 0.0
    overhead_s: float = 0.0
    boundary_s: float = 0.0
    timed_s: float = 0.0

    @property
    def seconds(self) -> float:
        """The sum."""
        return float(sum(getattr(self, each.name) for each in fields(self)))

    @property
    def bound(self) -> BoundBy:
        """What most of the time is spent on."""
        named: dict[BoundBy, float] = {
            "compute": self.compute_s,
            "memory": self.memory_s,
            "overhead": self.overhead_s,
            "boundaries": self.boundary_s,
            "timed": self.timed_s,
        }
        return max(named, key=lambda name: named[name])

    def __add__(self, other: TimeParts) -> TimeParts:
        """Part by part."""
        return TimeParts(
            **{
                each.name: getattr(self, each.name) + getattr(other, each.name)
                for each in fields(self)
            }
        )

    def __mul__(self, factor: float) -> TimeParts:
        """Every part ``factor`` times as long."""
        return TimeParts(**{each.name: getattr(self, each.name) * factor for each in fields(self)})
