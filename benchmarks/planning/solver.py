"""How long the exact start takes on large problems.

    python -m benchmarks.planning.solver

Problems like networks of 100 to 500 groups with 8 candidates, boundary costs and program points,
under one limit and under several that bind together; processor seconds of one thread, and the
proven gap.
"""

from __future__ import annotations

import itertools
import json
import time
from typing import Any, Final

import numpy as np

from advisor.atomic import write_text
from advisor.search.milp import LARGE, LARGE_GAP, solve, value_of
from advisor.search.problem import evaluate
from benchmarks.planning.plans import RESULTS
from tests.unit.problems import layered_problem

GROUPS: Final = (100, 200, 500)
SEEDS: Final = (0, 1, 2)
POINTS: Final = 20
SHARES: Final[dict[str, dict[str, float]]] = {
    "size": {"size_bytes": 0.2},
    "size, memory, latency": {"size_bytes": 0.2, "memory_bytes": 0.205, "latency_s": 0.39},
    "size, memory, latency, energy": {
        "size_bytes": 0.2,
        "memory_bytes": 0.205,
        "latency_s": 0.39,
        "energy_j": 0.225,
    },
}
"""Of float32's; the plan at a size limit alone would break most of the others."""


def main() -> None:
    """Solve every problem, with the solver's own gap, and write the record."""
    rows: list[dict[str, Any]] = []
    for groups, seed, name in itertools.product(GROUPS, SEEDS, SHARES):
        problem = layered_problem(np.random.default_rng(seed), groups=groups, points=POINTS)
        whole = evaluate(problem, (0,) * groups)
        bounds = {key: share * value_of(whole, key) for key, share in SHARES[name].items()}
        began = time.process_time()
        found = solve(problem, minimise="divergence", bounds=bounds)
        seconds = time.process_time() - began
        row = {"groups": groups, "seed": seed, "limits": name, "cpu_s": seconds}
        rows.append(row | {"gap": None if found is None else found.gap})
    record = {"candidates": 8, "relative_gap": LARGE_GAP, "large": LARGE, "rows": rows}
    write_text(RESULTS / "solver.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
