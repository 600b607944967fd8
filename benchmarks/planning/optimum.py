"""How far plans are from the best possible ones, where every assignment can be measured.

    python -m benchmarks.planning.optimum {mlp,cnn,transformer}

Three small classifiers of handwritten digits, trained here, with six layers of four formats: 4096
assignments, each measured on the planning samples (which choose) and on unused ones (which judge).
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from advisor.atomic import write_text
from advisor.budget import Budget
from advisor.choose import choose
from advisor.demo import digits
from advisor.search.milp import solve
from advisor.search.problem import Choice, evaluate
from benchmarks.planning.cases import open_evidence, silent
from benchmarks.planning.plans import RESULTS, TRIALS
from benchmarks.planning.questions import BUDGETS, Question, budget_bytes
from benchmarks.planning.simulate import weight_simulator

STEPS: Final = 400
SAMPLES: Final = 128
SEED: Final = 0


class Mlp(nn.Module):
    """Six linear layers with a residual path: images (B, 1, 8, 8) to logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 96)
        self.middle = nn.ModuleList(nn.Linear(96, 96) for _ in range(4))
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch of images."""
        h = functional.relu(self.first(x.flatten(1)))
        for layer in self.middle:
            h = h + functional.relu(layer(h))
        logits: Tensor = self.head(h)
        return logits


class Cnn(nn.Module):
    """Five convolutions, one of them depthwise, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 24, 3, padding=1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.mix = nn.Conv2d(24, 48, 1)
        self.narrow = nn.Conv2d(48, 48, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(48, 48, 3, padding=1)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch of images."""
        x = functional.relu(self.stem(x))
        x = functional.relu(self.mix(functional.relu(self.depthwise(x))))
        x = functional.relu(self.narrow(x))
        x = x + functional.relu(self.deep(x))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


class Transformer(nn.Module):
    """One pre-norm block over the eight rows of an image; six linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Linear(8, 48)
        self.norm1, self.norm2 = nn.LayerNorm(48), nn.LayerNorm(48)
        self.qkv, self.out = nn.Linear(48, 144), nn.Linear(48, 48)
        self.up, self.down = nn.Linear(48, 96), nn.Linear(96, 48)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a batch of images."""
        h = self.rows(x.flatten(1, 2))
        q, k, v = self.qkv(self.norm1(h)).chunk(3, dim=-1)
        h = h + self.out(functional.scaled_dot_product_attention(q, k, v))
        h = h + self.down(functional.gelu(self.up(self.norm2(h))))
        logits: Tensor = self.head(h.mean(dim=1))
        return logits


MODELS: Final[Mapping[str, type[nn.Module]]] = {"mlp": Mlp, "cnn": Cnn, "transformer": Transformer}


def main() -> None:
    """Enumerate one model, plan at every budget, and write what is between them."""
    parser = argparse.ArgumentParser(description="Distance from the true optimum.")
    parser.add_argument("model", choices=tuple(MODELS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = compare(arguments.model)
    write_text(
        arguments.results / f"optimum-{arguments.model}.json", json.dumps(record, indent=1) + "\n"
    )


def compare(name: str) -> dict[str, Any]:
    """Every assignment of one model measured, and a plan per budget."""
    question = _question(name)
    with open_evidence(question, question.planning(SEED), SEED) as gathered:
        simulator = weight_simulator(gathered.simulator)
        evidence = replace(gathered, simulator=simulator)
        simulator.judge_by(question.unused)
        problem = evidence.problem
        options = [range(len(each)) for each in problem.candidates]
        plans: list[Choice] = list(itertools.product(*options))
        planning = np.array([simulator.measure_planning(plan) for plan in plans])
        unused = np.array([float(simulator.each(plan, "unused").mean()) for plan in plans])
        predicted = np.array([evaluate(problem, plan).divergence for plan in plans])
        size = np.array([evaluate(problem, plan).size_bytes for plan in plans])
        cells: list[dict[str, Any]] = []
        for share in BUDGETS:
            budget = budget_bytes(problem.size_bytes.per_group, share) + problem.size_bytes.constant
            chosen = choose(
                evidence,
                budget=Budget(size_bytes=budget),
                objective="accuracy",
                metric=None,
                trials=TRIALS,
                seed=SEED,
                cache=None,
                say=silent,
            )
            fits = size <= budget
            bound = solve(problem, minimise="divergence", bounds={"size_bytes": budget})
            assert bound is not None  # all in 2 bits fits every budget
            ours = chosen.winner.choice
            cells.append(
                {
                    "share": share,
                    "planning": simulator.measure_planning(ours) / float(planning[fits].min()) - 1,
                    "unused": float(simulator.each(ours, "unused").mean())
                    / float(unused[fits].min())
                    - 1,
                    "unused_of_best_by_planning": float(unused[fits][planning[fits].argmin()])
                    / float(unused[fits].min())
                    - 1,
                    "bound": bound.bound,
                    "least_predicted": float(predicted[fits].min()),
                    "choice": "".join(map(str, ours)),
                }
            )
    return {"model": name, "assignments": len(plans), "cells": cells}


def _question(name: str) -> Question:
    images = digits.data()
    torch.manual_seed(SEED)
    model = MODELS[name]()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(STEPS):
        at = torch.randint(len(images.test), (64,), generator=generator)
        loss = functional.cross_entropy(model(images.test[at]), images.test_labels[at])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    return Question(
        name=name,
        model=model.eval(),
        kind="logits",
        pool={"x": images.calibration[:SAMPLES]},
        unused={"x": images.calibration[SAMPLES:]},
        count=SAMPLES,
        batch=SAMPLES // 2,
    )


if __name__ == "__main__":
    main()
