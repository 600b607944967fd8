"""How good a plan could be at all: local search on the unused samples themselves.

    python -m benchmarks.planning.clairvoyant MODEL

No planner sees those samples, so this says how far below the others a plan can possibly lie, not
what any tool does. It starts from the best plan of all methods and seeds, and takes changes of one
or two groups inside the bytes while one is better; the file of ``plans judge`` is added to.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch

from advisor.atomic import write_text
from advisor.search.problem import Choice, Problem, evaluate
from benchmarks.planning.cases import open_evidence
from benchmarks.planning.plans import RESULTS
from benchmarks.planning.questions import BUDGETS, MODELS, ask
from benchmarks.planning.simulate import WeightSimulator, weight_simulator

MOST: Final = 1000
"""Plans that are measured at one budget."""

LEAST_USED: Final = 0.97
"""Plans that leave more of the budget unused are not looked at."""


def main() -> None:
    """Search at every budget of one model."""
    parser = argparse.ArgumentParser(description="The best plans that the judge's samples know.")
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.results / f"{arguments.model}.plans.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    question = ask(arguments.model)
    with open_evidence(question, question.planning(0), 0) as evidence:
        simulator = weight_simulator(evidence.simulator)
        simulator.judge_by(question.unused)
        found: dict[str, dict[str, object]] = {}
        for share in BUDGETS:
            cells = [cell for cell in record["cells"] if cell["share"] == share]
            methods = [m for cell in cells for m in cell["methods"].values() if m is not None]
            starts = {tuple(map(int, method["choice"])) for method in methods}
            search = Search(simulator, evidence.problem, cells[0]["budget_bytes"])
            found[f"{share:g}"] = search.run(sorted(starts))
    record["clairvoyant"] = found
    write_text(path, json.dumps(record, indent=1) + "\n")


class Search:
    """Steepest enough: the first change that is better, in a shuffled order."""

    def __init__(self, simulator: WeightSimulator, problem: Problem, budget: float) -> None:
        self.simulator = simulator
        self.problem = problem
        self.budget = budget
        self.lost: dict[Choice, float] = {}

    def run(self, starts: Sequence[Choice]) -> dict[str, object]:
        """The local optimum from the best of ``starts``."""
        best = min((each for each in starts if self._used(each) <= 1), key=self._measure)
        began = self._measure(best)
        rng = np.random.default_rng(0)
        is_better = True
        while is_better and len(self.lost) < MOST:
            is_better = False
            moves = self._moves(best)
            for at in rng.permutation(len(moves)):
                near = tuple(dict(moves[at]).get(g, index) for g, index in enumerate(best))
                if near in self.lost or not LEAST_USED <= self._used(near) <= 1:
                    continue
                is_better = self._measure(near) < self._measure(best)
                if is_better:
                    best = near
                if is_better or len(self.lost) >= MOST:
                    break
        return {
            "divergence": self._measure(best),
            "best_of_all_methods": began,
            "measured": len(self.lost),
            "choice": "".join(map(str, best)),
        }

    def _moves(self, choice: Choice) -> list[tuple[tuple[int, int], ...]]:
        """One or two groups with another candidate."""
        singles = [
            (group, other)
            for group, options in enumerate(self.problem.candidates)
            for other in range(len(options))
            if other != choice[group]
        ]
        pairs = [(a, b) for a, b in itertools.combinations(singles, 2) if a[0] != b[0]]
        return [*((each,) for each in singles), *pairs]

    def _used(self, choice: Choice) -> float:
        return evaluate(self.problem, choice).size_bytes / self.budget

    def _measure(self, choice: Choice) -> float:
        if choice not in self.lost:
            self.lost[choice] = float(self.simulator.each(choice, "unused").double().mean())
        return self.lost[choice]


if __name__ == "__main__":
    main()
