"""Plans at equal bytes, judged on samples that planned nothing.

    python -m benchmarks.planning.plans bytes MODEL     what every format costs, for the other tools
    PEERS/bin/python -m benchmarks.planning.peers METHOD MODEL BYTES OUT     their answers
    python -m benchmarks.planning.plans run MODEL       our methods' choices, every seed and budget
    python -m benchmarks.planning.plans judge MODEL     all choices on the unused samples

Every method gets the same planning samples, chooses one format per group of layers inside the same
bytes, and its choice goes through our quantizer. A seed that has its cells already is kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from advisor.atomic import write_text
from advisor.budget import Budget
from advisor.choose import choose
from advisor.evidence import Evidence
from advisor.foresight import column_scores
from advisor.formats import scheme_named
from advisor.passes.apply import dequantize
from advisor.passes.fx import attribute
from advisor.search.descent import Descent
from advisor.search.milp import solve
from advisor.search.problem import Choice, FloatArray, Linear, Problem, evaluate
from advisor.search.surrogate import fit_surrogate
from advisor.search.table import table_of
from benchmarks.planning.cases import open_evidence, silent
from benchmarks.planning.questions import BUDGETS, MODELS, SEEDS, ask, budget_bytes
from benchmarks.planning.simulate import FLOAT, WeightSimulator, weight_simulator

RESULTS: Final = Path(__file__).with_name("results")
TRIALS: Final = 24
"""The advisor's own default."""

RESAMPLES: Final = 2000

PEERS: Final = ("modelopt-gradient", "modelopt-kl", "nncf", "mct")


def main() -> None:
    """Do one step for one model."""
    parser = argparse.ArgumentParser(description="Plans at equal bytes on unused samples.")
    parser.add_argument("step", choices=("bytes", "run", "judge"))
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.step == "bytes":
        describe(arguments.model, arguments.results)
    if arguments.step == "judge":
        judge(arguments.model, arguments.results)
    for seed in arguments.seeds if arguments.step == "run" else ():
        run(arguments.model, seed, arguments.results)


def describe(model: str, results: Path) -> None:
    """Write what the other tools need to know: bytes of every format, budgets."""
    question = ask(model)
    with open_evidence(question, question.planning(0), 0) as evidence:
        setting, sizes = evidence.prepared.setting, evidence.problem.size_bytes.per_group
        facts: dict[str, Any] = {"bytes": {}, "counts": {}, "fixed_bytes": 0.0}
        for group, row in zip(setting.groups, sizes, strict=True):
            options = setting.space.candidates[group.name]
            layer = setting.layers_of(group)[0]
            if len(options) == 1:
                facts["fixed_bytes"] += float(row[0])
                continue
            named = zip(options, row, strict=True)
            facts["bytes"][layer.weight] = {each.scheme: float(size) for each, size in named}
            facts["counts"][layer.weight] = layer.weight_count
        facts["budgets"] = [budget_bytes(sizes, share) for share in BUDGETS]
    write_text(results / f"{model}.bytes.json", json.dumps(facts, indent=1) + "\n")


def run(model: str, seed: int, results: Path) -> None:
    """Every method at every budget with one seed; adds to the model's file."""
    path = results / f"{model}.plans.json"
    record: dict[str, Any] = {"model": model, "trials": TRIALS, "cells": []}
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
    if any(cell["seed"] == seed for cell in record["cells"]):
        return
    question = ask(model)
    torch.manual_seed(seed)
    began = time.process_time()
    with open_evidence(question, question.planning(seed), seed) as gathered:
        simulator = weight_simulator(gathered.simulator)
        evidence = replace(gathered, simulator=simulator)
        tables = loss_tables(evidence, simulator)
        for share in BUDGETS:
            cell = plan_cell(evidence, simulator, share, tables, seed)
            record["cells"].append({"seed": seed, "share": share, **cell})
    record["cpu_s"] = record.get("cpu_s", 0.0) + time.process_time() - began
    write_text(path, json.dumps(record, indent=1) + "\n")


def judge(model: str, results: Path) -> None:
    """Divergence of every choice on the unused samples, and ours over each; in the same file."""
    path = results / f"{model}.plans.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    question = ask(model)
    with open_evidence(question, question.planning(0), 0) as evidence:
        simulator = weight_simulator(evidence.simulator)
        simulator.judge_by(question.unused)
        for cell in record["cells"]:
            index = BUDGETS.index(cell["share"])
            named = {n: tuple(map(int, text)) for n, text in cell["choices"].items()}
            answers = read_peers(model, cell["seed"], evidence, results)
            found = {name: answer[index] for name, answer in answers.items()}
            choices: dict[str, Choice | None] = {**named, **found}
            ours = simulator.each(named["ours"], "unused").double().numpy()
            cell["methods"] = {
                name: None
                if choice is None
                else _judged(simulator, evidence, choice, ours, cell["seed"])
                for name, choice in choices.items()
            }
    record["unused_samples"] = len(next(iter(question.unused.values())))
    write_text(path, json.dumps(record, indent=1) + "\n")


def _judged(
    simulator: WeightSimulator, evidence: Evidence, choice: Choice, ours: FloatArray, seed: int
) -> dict[str, Any]:
    values = simulator.each(choice, "unused").double().numpy()
    return {
        "divergence": float(values.mean()),
        "ours_over_it": ratio_interval(ours, values, seed),
        "bytes": evaluate(evidence.problem, choice).size_bytes,
        "choice": "".join(map(str, choice)),
    }


def loss_tables(evidence: Evidence, simulator: WeightSimulator) -> dict[str, list[FloatArray]]:
    """Losses per group and candidate, as methods that sum them see them."""
    problem = evidence.problem
    return {
        "diagonal": list(problem.divergence.per_group),
        "direct": _direct(problem, simulator),
        "sqnr": _sqnr(evidence),
    }


def read_peers(
    model: str, seed: int, evidence: Evidence, results: Path
) -> dict[str, list[Choice | None]]:
    """The other tools' answers as choices, by budget; None where one has none."""
    setting = evidence.prepared.setting
    found: dict[str, list[Choice | None]] = {}
    for name in PEERS:
        path = results / f"{model}.{name}.json"
        if not path.exists():
            continue
        known = json.loads(path.read_text(encoding="utf-8"))["seeds"].get(str(seed), {})
        choices: list[Choice | None] = []
        for answer in known.get("answers", [None] * len(BUDGETS)):
            choice: list[int] = []
            for group in setting.groups:
                options = [option.scheme for option in setting.space.candidates[group.name]]
                weight = setting.layers_of(group)[0].weight
                wanted = (answer or {}).get(weight, options[0])
                choice.append(options.index(wanted) if wanted in options else 0)
            choices.append(None if answer is None else tuple(choice))
        found[name] = choices
    return found


def plan_cell(
    evidence: Evidence,
    simulator: WeightSimulator,
    share: float,
    tables: Mapping[str, Sequence[FloatArray]],
    seed: int,
) -> dict[str, Any]:
    """Every method's choice at one budget."""
    problem = evidence.problem
    size = budget_bytes(problem.size_bytes.per_group, share) + problem.size_bytes.constant
    choices = {name: _exact(problem, losses, size) for name, losses in tables.items()}
    choices["scores"] = _with_interactions(evidence, size)
    before = simulator.runs
    chosen = choose(
        evidence,
        budget=Budget(size_bytes=size),
        objective="accuracy",
        metric=None,
        trials=TRIALS,
        seed=seed,
        cache=None,
        say=silent,
    )
    choices["ours"] = chosen.winner.choice
    measurements = simulator.runs - before
    return {
        "budget_bytes": size,
        "model_gap": chosen.model_gap,
        "measurements": measurements,
        "wider": _wider(problem, simulator, choices["ours"], size),
        "choices": {name: "".join(map(str, choice)) for name, choice in choices.items()},
    }


def _wider(problem: Problem, simulator: WeightSimulator, ours: Choice, size: float) -> list[float]:
    """What is left of the budget, judged: the measured divergence of every plan that takes one
    group wider and still fits, over ours on the same planning samples; the least first."""
    sizes = problem.size_bytes.per_group
    left = size - evaluate(problem, ours).size_bytes
    fitting = [
        (*ours[:group], candidate, *ours[group + 1 :])
        for group, row in enumerate(sizes)
        for candidate in range(len(row))
        if 0 < row[candidate] - row[ours[group]] <= left
    ]
    own = simulator.measure_planning(ours)
    return sorted(simulator.measure_planning(choice) / own for choice in fitting)


def _exact(problem: Problem, losses: Sequence[FloatArray], size: float) -> Choice:
    """The assignment with the least summed loss, proven."""
    linear = replace(problem, divergence=Linear(per_group=tuple(losses)))
    found = solve(linear, minimise="divergence", bounds={"size_bytes": size})
    assert found is not None  # every budget of the question is feasible
    return found.choice


def _with_interactions(evidence: Evidence, size: float) -> Choice:
    """From scores alone: the exact start, then descent on the half-shrunk form."""
    problem = evidence.problem
    scores = column_scores(evidence.prepared.setting, problem, evidence.sensitivity)
    descent = Descent(
        table=table_of(problem),
        surrogate=fit_surrogate(scores),
        bounds={"size_bytes": size},
        score=lambda divergence, _: divergence,
    )
    return descent.run(_exact(problem, problem.divergence.per_group, size)).choice


def _direct(problem: Problem, simulator: WeightSimulator) -> list[FloatArray]:
    """Every candidate measured alone on all planning samples."""
    found: list[FloatArray] = []
    for group, options in enumerate(problem.candidates):
        losses = np.zeros(len(options))
        for index in range(len(options) if len(options) > 1 else 0):
            alone = [FLOAT] * len(problem.groups)
            alone[group] = index
            losses[index] = simulator.measure_planning(tuple(alone))
        found.append(losses)
    return found


def _sqnr(evidence: Evidence) -> list[FloatArray]:
    """Noise over signal of every weight, summed over the layers of a group."""
    setting, rounded = evidence.prepared.setting, evidence.simulator.rounded
    found: list[FloatArray] = []
    for group in setting.groups:
        options = setting.space.candidates[group.name]
        losses = np.zeros(len(options))
        for layer in setting.layers_of(group):
            for index, option in enumerate(options if len(options) > 1 else ()):
                weight = attribute(setting.graph.module, layer.weight)
                fmt = layer.weight_format(scheme_named(option.scheme))
                table = rounded.get(layer.weight, fmt, option.algorithm)
                noise = dequantize(table, fmt, layer.weight_shape) - weight
                losses[index] += float(noise.square().sum() / weight.square().sum())
        found.append(losses)
    return found


def ratio_interval(ours: FloatArray, other: FloatArray, seed: int) -> list[float]:
    """Ratio of the means over the same samples, and its paired bootstrap interval of 95 %."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(ours), size=(RESAMPLES, len(ours)))
    ratios = ours[drawn].mean(axis=1) / other[drawn].mean(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return [float(ours.mean() / other.mean()), float(low), float(high)]


if __name__ == "__main__":
    main()
