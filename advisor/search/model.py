"""Matrices of the assignment problem for a linear solver, scaled so that its tolerances fit.

Columns: one binary per (group, candidate), one per indicator, then, where memory has several
program points, their common part (in practice the weights, which are resident at every point)
and the maximum itself when memory is minimised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from advisor.search.problem import Choice, FloatArray, Linear, Literal, Problem

FULL: Final = 1e3
"""What the room below a limit is scaled to: the solver's 1e-6 is then 1e-9 of the room."""

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """coefficients @ columns + constant; columns are candidates, then indicators."""

    coefficients: FloatArray
    constant: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Where each group's candidates sit. starts: shape (groups + 1,)."""

    starts: npt.NDArray[np.int64]
    indicators: int

    @property
    def candidates(self) -> int:
        """Number of candidate columns, over all groups."""
        return int(self.starts[-1])

    @property
    def total(self) -> int:
        """Number of candidate and indicator columns."""
        return self.candidates + self.indicators


@dataclass(frozen=True, slots=True, kw_only=True)
class Floored:
    """A row measured from its least value: row = floor + above @ columns - negative.

    above: what each allowed candidate adds to its group's cheapest; indicators as they were.
    negative: sum of the indicators' negative coefficients, which the floor already counts.
    span: no choice is more than this above the floor.
    """

    above: FloatArray
    floor: float
    negative: float
    span: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One inequality: coefficients @ v[columns] <= upper."""

    columns: npt.NDArray[np.int64]
    coefficients: FloatArray
    upper: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """What all memory rows have in common: column ``at`` is at least above @ v / unit."""

    above: FloatArray
    at: int
    unit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """minimise cost @ v subject to ``lines``, one candidate per group, 0 <= v <= highest.

    The minimised quantity is offset + scale * (cost @ v).
    """

    cost: FloatArray
    lines: tuple[Line, ...]
    highest: FloatArray
    integral: BoolArray
    offset: float
    scale: float


def columns_of(problem: Problem) -> Columns:
    """Column layout of ``problem``."""
    sizes = [len(options) for options in problem.candidates]
    return Columns(
        starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        indicators=len(problem.indicators),
    )


def rows_of(problem: Problem, quantity: str) -> tuple[Row, ...]:
    """The rows whose maximum is ``quantity``; those below another everywhere are left out."""
    if quantity == "memory_bytes":
        return _undominated([_row(problem, point) for point in problem.memory_bytes])
    linear = {
        "divergence": problem.divergence,
        "latency_s": problem.latency_s,
        "size_bytes": problem.size_bytes,
        "energy_j": problem.energy_j,
    }[quantity]
    return () if linear is None else (_row(problem, linear),)


def floored(row: Row, columns: Columns, mask: BoolArray) -> Floored:
    """``row`` from its least value; ``mask`` (candidate columns) says what may be chosen."""
    x, z = row.coefficients[: columns.candidates], row.coefficients[columns.candidates :]
    starts = columns.starts[:-1]
    least = np.minimum.reduceat(np.where(mask, x, np.inf), starts) if starts.size else np.zeros(0)
    above = np.where(mask, x - np.repeat(least, np.diff(columns.starts)), 0.0)
    negative = float(z[z < 0].sum())
    most = np.maximum.reduceat(above, starts) if starts.size else np.zeros(0)
    return Floored(
        above=np.concatenate([above, z]),
        floor=row.constant + float(least.sum()) + negative,
        negative=negative,
        span=float(most.sum()) + float(z[z > 0].sum()) - negative,
    )


def exclude(
    rows: Mapping[str, tuple[Row, ...]],
    limits: Mapping[str, float],
    columns: Columns,
    mask: BoolArray,
) -> BoolArray | None:
    """``mask`` without candidates that alone break a limit; None when everything does."""
    mask = mask.copy()
    for quantity, limit in limits.items():
        for row in rows[quantity]:
            base = floored(row, columns, mask)
            slack = _slack(limit, base)
            if base.floor > limit + slack:
                return None
            mask &= base.above[: columns.candidates] <= limit - base.floor + slack
    return mask


def assemble(
    problem: Problem,
    rows: Mapping[str, tuple[Row, ...]],
    minimise: str,
    bounds: Mapping[str, float],
    mask: BoolArray,
    columns: Columns,
    excess: float | None,
    banned: tuple[Choice, ...],
) -> Model:
    """The linear program; ``excess``: how far above its floor the objective is known to be."""
    base_of = {q: [floored(row, columns, mask) for row in rows[q]] for q in {minimise, *bounds}}
    shared = _shared(base_of.get("memory_bytes", []), columns)
    is_maximum = minimise == "memory_bytes"
    width = columns.total + (shared is not None) + is_maximum
    lines = [] if shared is None else [_line(shared.above / shared.unit, 0.0, {shared.at: -1.0})]

    for quantity, limit in bounds.items():
        for base in base_of[quantity]:
            room = max(limit - base.floor, 0.0)
            if base.span > room:
                full = room if room > _slack(limit, base) else base.span
                part = shared if quantity == "memory_bytes" else None
                lines.append(_bounded(base, part, room, full / FULL, {}))

    floor = max((base.floor for base in base_of[minimise]), default=0.0)
    spans = [base.floor - floor + base.span for base in base_of[minimise]]
    scale = (excess or max(spans, default=0.0) or 1.0) / FULL
    cost = np.zeros(width)
    if is_maximum:
        cost[-1] = 1.0
        lines += [
            _bounded(base, shared, floor - base.floor, scale, {width - 1: -1.0})
            for base in base_of[minimise]
        ]
    else:
        for base in base_of[minimise]:
            cost[: columns.total] = base.above / scale
            floor -= base.negative

    used = [row.coefficients for quantity in base_of for row in rows[quantity]]
    lines += _conjunctions(problem, columns, used)
    lines += [_ban(choice, columns) for choice in banned]
    highest = np.full(width, np.inf)
    highest[: columns.candidates] = mask
    highest[columns.candidates : columns.total] = 1.0
    return Model(
        cost=cost,
        lines=tuple(lines),
        highest=highest,
        integral=np.arange(width) < columns.total,
        offset=floor,
        scale=scale,
    )


def _row(problem: Problem, linear: Linear) -> Row:
    fixed = np.zeros(len(problem.indicators))
    fixed[: linear.per_indicator.size] = linear.per_indicator
    return Row(
        coefficients=np.concatenate([*linear.per_group, fixed]).astype(np.float64),
        constant=float(linear.constant),
    )


def _undominated(rows: list[Row]) -> tuple[Row, ...]:
    kept: list[FloatArray] = []
    found: list[Row] = []
    for row in sorted(rows, key=lambda row: -float(row.coefficients.sum()) - row.constant):
        whole = np.append(row.coefficients, row.constant)
        if not any(bool(np.all(other >= whole)) for other in kept):
            kept.append(whole)
            found.append(row)
    return tuple(found)


def _slack(limit: float, base: Floored) -> float:
    # Room for the rounding of sums; ``solve`` checks the result without any.
    return 1e-12 * max(abs(limit), abs(base.floor)) + 1e-9 * max(limit - base.floor, 0.0)


def _shared(rows: list[Floored], columns: Columns) -> _Shared | None:
    if len(rows) < 2:
        return None
    above = np.maximum(np.min([base.above for base in rows], axis=0), 0.0)
    if not above.any():
        return None
    # The unit only sets the column's scale; a group takes one candidate, so this is generous.
    return _Shared(above=above, at=columns.total, unit=float(above.sum()) / FULL)


def _line(coefficients: FloatArray, upper: float, extra: Mapping[int, float]) -> Line:
    (at,) = np.nonzero(coefficients)
    return Line(
        columns=np.append(at, np.array(list(extra), dtype=np.int64)).astype(np.int64),
        coefficients=np.append(coefficients[at], list(extra.values())),
        upper=upper,
    )


def _bounded(
    base: Floored, shared: _Shared | None, room: float, scale: float, extra: Mapping[int, float]
) -> Line:
    upper = (room + base.negative) / scale
    if shared is None:
        return _line(base.above / scale, upper, extra)
    rest = (base.above - shared.above) / scale
    return _line(rest, upper, {shared.at: shared.unit / scale, **extra})


def _conjunctions(problem: Problem, columns: Columns, used: list[FloatArray]) -> list[Line]:
    """z <= each literal, and z >= sum of literals - (their number - 1): exact for binaries."""
    lines: list[Line] = []
    wanted = {i for i in range(columns.indicators) if any(r[columns.candidates + i] for r in used)}
    for index in reversed(range(columns.indicators)):
        if index not in wanted:
            continue
        literals = problem.indicators[index].literals
        wanted |= {item.indicator for item in literals if item.indicator is not None}
        total = np.zeros(columns.total)
        constants = 0.0
        for literal in literals:
            terms, constant = _affine(literal, columns)
            upper = -terms
            upper[columns.candidates + index] += 1.0
            lines.append(_line(upper, constant, {}))
            total += terms
            constants += constant
        total[columns.candidates + index] -= 1.0
        lines.append(_line(total, len(literals) - 1 - constants, {}))
    return lines


def _affine(literal: Literal, columns: Columns) -> tuple[FloatArray, float]:
    terms = np.zeros(columns.total)
    if literal.indicator is not None:
        terms[columns.candidates + literal.indicator] = 1.0
    elif literal.group is not None:
        terms[[int(columns.starts[literal.group]) + c for c in literal.candidates]] = 1.0
    return (-terms, 1.0) if literal.negated else (terms, 0.0)


def _ban(choice: Choice, columns: Columns) -> Line:
    at = columns.starts[:-1] + np.array(choice, dtype=np.int64)
    return Line(columns=at, coefficients=np.ones(len(choice)), upper=len(choice) - 1.0)
