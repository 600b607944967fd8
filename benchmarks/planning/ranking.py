"""How well predictions order plans, and what predicting costs.

    python -m benchmarks.planning.ranking MODEL {random,equal,cost}

random: 100 plans that span a large factor in divergence. equal: plans whose bytes lie within 2 % of
one another. Predictions and direct one-at-a-time measurement see the same scoring samples; what
they are held against is measured on samples that neither saw. cost: the time of both, in one
process on one core.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from scipy.stats import spearmanr

from advisor.atomic import write_text
from advisor.evidence import PROBE_KNOBS, Evidence, score_choices
from advisor.foresight import column_scores
from advisor.search.belief import believe
from advisor.search.problem import Choice, FloatArray
from advisor.search.recheck import recheck
from advisor.search.surrogate import HALF, cross_validate, fit_surrogate, ledoit_wolf
from advisor.search.table import as_array, table_of
from benchmarks.planning.cases import open_evidence
from benchmarks.planning.plans import RESULTS, TRIALS
from benchmarks.planning.questions import MODELS, Question, ask
from benchmarks.planning.simulate import FLOAT, WeightSimulator, weight_simulator

PLANS: Final = 100
SEED: Final = 0
SHARE: Final = 0.3
"""Of the way from all in 2 bits to all in 8: the bytes of the plans of equal size."""

WITHIN: Final = 0.01
"""Bytes may be so much more or less, so that no two differ by more than 2 %."""

TOGETHER: Final = 32
"""Samples of a training step: as many as are scored at once."""

RESAMPLES: Final = 2000

OURS: Final = ("half", "checked", "learned")
"""Predictions that are held against direct measurement."""


def main() -> None:
    """One part for one model; added to its file."""
    parser = argparse.ArgumentParser(description="Ranking of plans and cost of predictions.")
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("part", choices=("random", "equal", "cost"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.results / f"{arguments.model}.ranking.json"
    record: dict[str, Any] = {"model": arguments.model}
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
    question = ask(arguments.model)
    with open_evidence(question, question.planning(SEED), SEED) as gathered:
        simulator = weight_simulator(gathered.simulator)
        evidence = replace(gathered, simulator=simulator)
        if arguments.part == "cost":
            record["cost"] = measure_cost(evidence, simulator, question)
        else:
            simulator.judge_by(question.unused)
            draw = _random if arguments.part == "random" else _equal
            plans, others = draw(evidence, PLANS, SEED), draw(evidence, TRIALS, SEED + 1)
            record[arguments.part] = rank(evidence, simulator, plans, others)
    write_text(path, json.dumps(record, indent=1) + "\n")


def measure_cost(
    evidence: Evidence, simulator: WeightSimulator, question: Question
) -> dict[str, Any]:
    """Seconds of scoring every choice, and of measuring every one alone, on the scoring half; bytes
    that scoring and the model's own training step add to a process."""
    simulator.measure_scoring(tuple(0 for _ in simulator.setting.groups), {})  # what is made once
    peak = peak_bytes(lambda: score_choices(evidence.prepared, simulator, PROBE_KNOBS, SEED))
    own = peak_bytes(lambda: step(evidence.prepared.model, question))
    began = time.process_time()
    score_choices(evidence.prepared, simulator, PROBE_KNOBS, SEED)
    scoring = time.process_time() - began
    began = time.process_time()
    runs = simulator.runs
    _direct(evidence, simulator)
    direct = time.process_time() - began
    return {
        "groups": sum(len(options) > 1 for options in evidence.problem.candidates),
        "choices": simulator.runs - runs,
        "samples": evidence.sensitivity.samples,
        "probes": evidence.sensitivity.probes,
        "scoring_s": scoring,
        "direct_s": direct,
        "ratio": scoring / direct,
        "scoring_bytes": peak,
        "step_bytes": own,
    }


def step(model: torch.nn.Module, question: Question) -> None:
    """The model's own forward and backward pass on as many samples as are scored at once."""
    inputs = {name: value[:TOGETHER] for name, value in question.pool.items()}
    for parameter in model.parameters():
        parameter.requires_grad_()
    found = model(**inputs)
    output = found if isinstance(found, torch.Tensor) else next(iter(found.values()))
    torch.autograd.backward(output.float().square().sum())


def peak_bytes(action: Callable[[], object]) -> int:
    """How much a process grows while it does something, in one of its own."""
    gc.collect()
    # What was freed but not given back would be used again, and not count.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        action()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        os.write(writing, str((after - before) * 1024).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    if not text:
        raise RuntimeError("the process that was measured died")
    return int(text)


def rank(
    evidence: Evidence,
    simulator: WeightSimulator,
    plans: Sequence[Choice],
    others: Sequence[Choice],
) -> dict[str, Any]:
    """Spearman's coefficient of every predictor with what is measured.

    others: plans of the same kind to learn from.
    """
    problem = evidence.problem
    measured = np.array([float(simulator.each(plan, "unused").mean()) for plan in plans])
    scores = column_scores(evidence.prepared.setting, problem, evidence.sensitivity)
    table = table_of(problem)
    features = table.features(as_array(plans))
    kept = {"ledoit-wolf": ledoit_wolf(scores), "cross-validated": cross_validate(scores)}

    def measure(choices: Sequence[Choice]) -> list[float]:
        return [simulator.measure_scoring(choice, {}) for choice in choices]

    direct = _direct(evidence, simulator)
    predicted: dict[str, FloatArray] = {
        name: fit_surrogate(scores, kept=kept).divergence(features)
        for name, kept in (
            ("diagonal", 0.0),
            ("half", HALF),
            ("whole", 1.0),
            *kept.items(),
        )
    }
    checked = recheck(problem, scores, lambda *_: plans, measure, most=TRIALS)
    form = fit_surrogate(checked.scores)
    predicted["checked"] = form.divergence(features)
    seen = table.features(as_array(others))
    learned = believe(form, seen, np.array(measure(others)))
    predicted["learned"] = learned.of(features)[0]
    predicted["direct"] = np.array(
        [sum(float(direct[g][c]) for g, c in enumerate(plan)) for plan in plans]
    )
    # No predictor is asked: the plans themselves, measured on the samples that it predicts from.
    predicted["measured"] = np.array(measure(plans))
    found = {name: float(spearmanr(each, measured)[0]) for name, each in predicted.items()}
    return {
        "plans": len(plans),
        "factor": float(measured.max() / measured[measured > 0].min()),
        "kept": kept,
        "checked": len(checked.factors),
        "spearman": found,
        "less_direct": {
            name: _interval(predicted[name], predicted["direct"], measured) for name in OURS
        },
    }


def _interval(first: FloatArray, second: FloatArray, measured: FloatArray) -> list[float]:
    """Difference of two coefficients and its bootstrap interval of 95 % over plans."""
    rng = np.random.default_rng(SEED)
    differences: list[float] = []
    for _ in range(RESAMPLES):
        at = rng.integers(len(measured), size=len(measured))
        pair = [spearmanr(each[at], measured[at])[0] for each in (first, second)]
        differences.append(float(pair[0] - pair[1]))
    whole = spearmanr(first, measured)[0] - spearmanr(second, measured)[0]
    low, high = np.quantile(differences, [0.025, 0.975])
    return [float(whole), float(low), float(high)]


def _direct(evidence: Evidence, simulator: WeightSimulator) -> list[FloatArray]:
    found: list[FloatArray] = []
    for group, options in enumerate(evidence.problem.candidates):
        losses = np.zeros(len(options))
        for index in range(len(options) if len(options) > 1 else 0):
            alone = [FLOAT] * len(evidence.problem.groups)
            alone[group] = index
            losses[index] = simulator.measure_scoring(tuple(alone), {})
        found.append(losses)
    return found


def _random(evidence: Evidence, count: int, seed: int) -> list[Choice]:
    """Plans of every mixture of the formats, from mostly 16 and 8 bits to mostly 2."""
    rng = np.random.default_rng(seed)
    found: dict[Choice, None] = {}
    while len(found) < count:
        level = rng.uniform(0.5, 3)
        plan: list[int] = []
        for options in evidence.problem.candidates:
            weights = np.exp(-2.0 * np.abs(np.arange(len(options)) - level))
            plan.append(int(rng.choice(len(options), p=weights / weights.sum())))
        found[tuple(plan)] = None
    return list(found)


def _equal(evidence: Evidence, count: int, seed: int) -> list[Choice]:
    """Plans of nearly equal bytes: a walk of random changes that stays inside the band."""
    rng = np.random.default_rng(seed)
    sizes: Mapping[int, FloatArray] = dict(enumerate(evidence.problem.size_bytes.per_group))
    least = sum(float(row[-1]) for row in sizes.values())
    most = sum(float(row[min(1, len(row) - 1)]) for row in sizes.values())
    goal = least + SHARE * (most - least)
    free = [group for group, row in sizes.items() if len(row) > 1]
    now = [len(row) - 1 for row in sizes.values()]

    def away(plan: Sequence[int]) -> float:
        return abs(sum(float(sizes[g][c]) for g, c in enumerate(plan)) - goal) / goal

    found: dict[Choice, None] = {}
    while len(found) < count:
        changed = list(now)
        for group in rng.choice(free, size=min(3, len(free)), replace=False):
            changed[group] = int(rng.integers(1, len(sizes[group])))
        if away(changed) <= max(WITHIN, away(now)):
            now = changed
            if away(now) <= WITHIN:
                found[tuple(now)] = None
    return list(found)


if __name__ == "__main__":
    main()
