"""Exact solutions to start from besides the best one by prediction."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Final

from advisor.search.milp import solve
from advisor.search.objective import LATENCY_SLACK, Aim, Start
from advisor.search.problem import Choice, Problem

DIVERGENCE_SHARES: Final = (0.3, 0.1, 0.03)
"""Shares of the divergence limit: the prediction leaves interactions out, so the best plan may
turn out to lose more than predicted."""

LATENCY_SHARES: Final = (0.9, 0.95, 0.975, 1.025, 1.05, 1.1)
"""Shares of the latency limit, where plans are timed: the one predicted right at the limit may be
timed on either side of it."""

SLACK_SHARES: Final = (0.5, 1.0)
"""Shares of the latency slack: the fastest plan by prediction gives up accuracy for nanoseconds
that no clock can tell."""


def further_starts(
    problem: Problem, begun: Start, aim: Aim, bounds: Mapping[str, float], *, is_timed: bool
) -> list[Choice]:
    """Choices near the first start for ``aim``, the most promising first.

    bounds: by quantity. is_timed: whole plans are timed before one is picked.
    """
    wanted: list[tuple[str, dict[str, float]]] = [("divergence", {})]
    objective, by_clock = aim.objective, is_timed and "latency_s" in bounds
    if objective == "auto":
        limits = [aim.predicted * share for share in DIVERGENCE_SHARES]
        wanted = [(aim.first, {"divergence": limit}) for limit in limits] + wanted
        if by_clock and aim.first != "latency_s":
            limits = [bounds["latency_s"] * share for share in LATENCY_SHARES]
            accurate = {"divergence": aim.predicted}
            wanted += [(aim.first, {**accurate, "latency_s": limit}) for limit in limits]
    elif objective == "latency":
        fastest, most = begun.evaluation.latency_s, bounds.get("latency_s", inf)
        limits = [min(fastest * (1 + LATENCY_SLACK * share), most) for share in SLACK_SHARES]
        wanted = [("divergence", {"latency_s": limit}) for limit in limits] + wanted
    elif by_clock:
        goal = "divergence" if objective == "accuracy" else "memory_bytes"
        limits = [bounds["latency_s"] * share for share in LATENCY_SHARES]
        wanted += [(goal, {"latency_s": limit}) for limit in limits]
    found = [solve(problem, minimise=goal, bounds={**bounds, **more}) for goal, more in wanted]
    return [solution.choice for solution in found if solution is not None]
