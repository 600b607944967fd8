"""How long the exact start takes on large problems.

    python -m benchmarks.planning.solver

Problems like networks of 100 to 500 groups with 8 candidates, boundary costs and program points;
processor seconds of one thread, and the proven gap.
"""

from __future__ import annotations

import json
import time
from typing import Any, Final

import numpy as np

from advisor.atomic import write_text
from advisor.search.milp import solve
from benchmarks.planning.plans import RESULTS
from tests.unit.problems import layered_problem

GROUPS: Final = (100, 200, 500)
SEEDS: Final = (0, 1, 2)
GAP: Final = 1e-3
POINTS: Final = 20
SHARE: Final = 0.2
"""Of float32's bytes."""


def main() -> None:
    """Solve every problem and write the record."""
    rows: list[dict[str, Any]] = []
    for groups in GROUPS:
        for seed in SEEDS:
            problem = layered_problem(np.random.default_rng(seed), groups=groups, points=POINTS)
            whole = float(sum(terms[0] for terms in problem.size_bytes.per_group))
            began = time.process_time()
            bounds = {"size_bytes": SHARE * whole}
            found = solve(problem, minimise="divergence", bounds=bounds, relative_gap=GAP)
            assert found is not None  # the cheapest plan is a tenth of float32
            seconds = time.process_time() - began
            rows.append({"groups": groups, "seed": seed, "cpu_s": seconds, "gap": found.gap})
    record = {"candidates": 8, "relative_gap": GAP, "rows": rows}
    write_text(RESULTS / "solver.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
