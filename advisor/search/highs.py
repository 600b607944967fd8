"""The one place that calls HiGHS, through ``scipy.optimize.milp``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from advisor.errors import AdvisorError
from advisor.search.model import Columns, Model
from advisor.search.problem import Choice
from advisor.streams import withheld_lines

_OPTIMAL = 0
_INFEASIBLE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """choice: the solver's, rounded to candidates. cost_bound: proven, in the model's scale."""

    choice: Choice
    cost_bound: float
    is_proven: bool


def run_highs(
    model: Model, columns: Columns, relative_gap: float, node_limit: int
) -> Answer | None:
    """Solve ``model``; None when nothing satisfies it.

    Raises:
        AdvisorError: nothing was found within the node limit, or the solver failed; its own
            words are in the message.
    """
    width = model.cost.size
    with withheld_lines("Highs"):
        outcome = milp(
            c=model.cost,
            integrality=model.integral.astype(np.uint8),
            bounds=Bounds(np.zeros(width), model.highest),
            constraints=_constraints(model, columns),
            options={"mip_rel_gap": relative_gap, "node_limit": node_limit},
        )
    status = int(outcome.status)
    if status == _INFEASIBLE:
        return None
    if outcome.x is None:
        raise AdvisorError(
            f"the solver could not place {columns.starts.size - 1} groups: {outcome.message} "
            "Loosen the budget a little, or allow fewer schemes per layer."
        )
    values = np.asarray(outcome.x, dtype=np.float64)
    choice = tuple(
        int(np.argmax(values[start:stop]))
        for start, stop in zip(columns.starts[:-1], columns.starts[1:], strict=True)
    )
    return Answer(
        choice=choice, cost_bound=float(outcome.mip_dual_bound), is_proven=status == _OPTIMAL
    )


def _constraints(model: Model, columns: Columns) -> list[LinearConstraint]:
    width = model.cost.size
    groups = columns.starts.size - 1
    one_hot = csr_array(
        (
            np.ones(columns.candidates),
            (np.repeat(np.arange(groups), np.diff(columns.starts)), np.arange(columns.candidates)),
        ),
        shape=(groups, width),
    )
    found = [LinearConstraint(one_hot, 1.0, 1.0)]
    if model.lines:
        at = np.repeat(np.arange(len(model.lines)), [line.columns.size for line in model.lines])
        matrix = csr_array(
            (
                np.concatenate([line.coefficients for line in model.lines]),
                (at, np.concatenate([line.columns for line in model.lines])),
            ),
            shape=(len(model.lines), width),
        )
        upper = np.array([line.upper for line in model.lines])
        found.append(LinearConstraint(matrix, -np.inf, upper))
    return found
