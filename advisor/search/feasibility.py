"""Refuse an impossible budget before any calibration, and say what would be possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from advisor.budget import Budget, format_amount, round_up
from advisor.errors import AdvisorError, InfeasibleError
from advisor.search.milp import solve
from advisor.search.problem import Choice, FloatArray, Linear, Problem, holding, total

_NAMES: Final[dict[str, str]] = {
    "memory_bytes": "memory",
    "size_bytes": "size",
    "latency_s": "latency",
    "energy_j": "energy",
}
_REST: Final = {
    "memory_bytes": "activations and buffers alive at the peak",
    "size_bytes": "what no layer's choice changes",
    "latency_s": "what no layer's choice changes (other operators, overheads)",
    "energy_j": "what no layer's choice changes",
}
_ADVICE: Final = {
    "memory_bytes": ("a smaller batch", "a shorter sequence or context"),
    "size_bytes": ("a smaller model",),
    "latency_s": ("a smaller batch", "a faster target"),
    "energy_j": ("a smaller batch",),
}
_SHOWN: Final = 3
_NEGLIGIBLE: Final = 0.005


def check_feasible(problem: Problem, budget: Budget, labels: Sequence[str] | None = None) -> None:
    """Return when some choice is inside every limit of ``budget``; otherwise explain.

    Needs no divergence (its terms may be zeros), so it runs before calibration. Pins and
    restrictions are whatever the problem's candidate lists leave.

    Args:
        problem: choices and costs.
        budget: the limits; accuracy_drop is not a property of an assignment and is ignored here.
        labels: a reader's name per group; None: the groups' own names.

    Raises:
        InfeasibleError: no choice fits. The message names the smallest possible value of each
            limit, the groups that hold it up, a budget that works, and what to change.
        UsageError: an energy limit, but no energy figures.
    """
    bounds = budget.bounds()
    if not bounds:
        return
    limits: dict[str, float] = {name: bounds[name] for name in _NAMES if name in bounds}
    if solve(problem, minimise=next(iter(limits)), bounds=limits) is not None:
        return
    names = problem.groups if labels is None else labels
    alone = {name: _least(problem, name, {}) for name in limits}
    violated = [name for name in limits if alone[name][0] > limits[name]]
    asked = ", ".join(f"{_NAMES[name]} {format_amount(name, limits[name])}" for name in limits)
    lines = [f"no plan fits the budget ({asked})."]
    if violated:
        for name in violated:
            value, choice = alone[name]
            held = _holders(problem, name, choice, names)
            lines.append(f"The smallest possible {_NAMES[name]} is {_up(name, value)}; {held}.")
    else:
        lines.append("Each limit can be met alone, but not all together.")
        for name in limits:
            others = {other: limit for other, limit in limits.items() if other != name}
            lines.append(_given_the_others(problem, name, others, names))
    working = _working(problem, limits)
    text = ",".join(f"{_NAMES[name]}={_canonical(name, value)}" for name, value in working.items())
    advice = dict.fromkeys(word for name in (violated or limits) for word in _ADVICE[name])
    lines.append(
        f'A budget that works: "{text}". Or allow more schemes and drop pins on the layers named '
        f"above, or use {', '.join(advice)}."
    )
    raise InfeasibleError(" ".join(lines))


def largest_contributors(
    problem: Problem, quantity: str, choice: Choice
) -> tuple[tuple[int, float], ...]:
    """(group, amount) of the groups that make up ``quantity`` under ``choice``, largest first.

    Memory is looked at where it peaks. Groups that contribute nothing are left out.
    """
    linear = _peak(problem, quantity, choice)
    parts = [
        (group, float(terms[index]))
        for group, (terms, index) in enumerate(zip(linear.per_group, choice, strict=True))
    ]
    return tuple(sorted((part for part in parts if part[1] > 0), key=lambda p: (-p[1], p[0])))


def _given_the_others(
    problem: Problem, name: str, others: Mapping[str, float], names: Sequence[str]
) -> str:
    found = solve(problem, minimise=name, bounds=others)
    if found is None:
        return f"The other limits exclude every plan, whatever the {_NAMES[name]}."
    held = _holders(problem, name, found.choice, names)
    return (
        f"Within the other limits the smallest possible {_NAMES[name]} is "
        f"{_up(name, found.value)}; {held}."
    )


def _least(problem: Problem, name: str, bounds: Mapping[str, float]) -> tuple[float, Choice]:
    found = solve(problem, minimise=name, bounds=bounds)
    if found is None:
        raise AdvisorError(
            f"the smallest {_NAMES[name]} cannot be found: a layer has no scheme left to choose "
            f"from; allow more schemes or drop a pin"
        )
    return found.value, found.choice


def _working(problem: Problem, limits: Mapping[str, float]) -> dict[str, float]:
    """Limits that some plan meets: each as asked where it can be, else the least it can be."""
    working: dict[str, float] = {}
    for name, limit in limits.items():
        value, _ = _least(problem, name, working)
        working[name] = limit if value <= limit else round_up(value)
    return working


def _holders(problem: Problem, name: str, choice: Choice, names: Sequence[str]) -> str:
    linear = _peak(problem, name, choice)
    whole = total(linear, choice, holding(problem, choice)) or 1.0
    parts = largest_contributors(problem, name, choice)
    shares = [
        (amount / whole, _holder(problem, group, choice, names)) for group, amount in parts[:_SHOWN]
    ]
    rest = 1.0 - sum(amount for _, amount in parts) / whole
    if rest >= _NEGLIGIBLE:
        shares.append((rest, _REST[name]))
    shares.sort(key=lambda share: -share[0])
    shown = ", ".join(f"{what} {share:.0%}" for share, what in shares)
    return f"held up by {shown}" if shown else "no layer changes that"


def _holder(problem: Problem, group: int, choice: Choice, names: Sequence[str]) -> str:
    scheme = problem.candidates[group][choice[group]].scheme
    is_only = len({option.scheme for option in problem.candidates[group]}) == 1
    return f"{names[group]} ({scheme}{', the only scheme allowed' if is_only else ''})"


def _peak(problem: Problem, quantity: str, choice: Choice) -> Linear:
    holds = holding(problem, choice)
    match quantity:
        case "memory_bytes":
            zeros: tuple[FloatArray, ...] = tuple(np.zeros(len(c)) for c in problem.candidates)
            return max(
                problem.memory_bytes,
                key=lambda point: total(point, choice, holds),
                default=Linear(per_group=zeros),
            )
        case "latency_s":
            return problem.latency_s
        case "divergence":
            return problem.divergence
        case "energy_j" if problem.energy_j is not None:
            return problem.energy_j
        case _:
            return problem.size_bytes


def _up(name: str, value: float) -> str:
    return format_amount(name, round_up(value))


def _canonical(name: str, value: float) -> str:
    field = Budget.within({name: value}).describe()
    return field.removeprefix(f"{_NAMES[name]}<=")
