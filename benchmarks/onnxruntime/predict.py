"""Predicted against measured latency of random plans.

    python -m benchmarks.onnxruntime.predict [CASE ...] [--target host] [--threads 1 2] [--plans 8]

The costs are found as ``advise`` finds them, from plans that are timed in turns with the random
ones: in between a shared machine would change its speed by more than predictions are off. None of
the random plans has a part in the costs. Each setting (model, threads) is kept in ``--work`` when
it is done; a run that was stopped goes on with the next.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from scipy.stats import spearmanr

from advisor.assemble import build_problem
from advisor.atomic import write_text
from advisor.errors import UsageError
from advisor.measure.costs import MeasuredCosts
from advisor.measure.machine import find_stopwatch
from advisor.measure.measure import LIMIT_S, explain, workbench
from advisor.measure.terms import designs
from advisor.passes.shapes import deployment_inputs
from advisor.prepare import check_deployment
from advisor.search.problem import Choice, Problem, evaluate
from advisor.setting import Setting
from advisor.targets.base import Stopwatch
from benchmarks.command import say
from benchmarks.models import Case, case_names, make_case
from benchmarks.onnxruntime.compare import RESULTS, WORK
from benchmarks.onnxruntime.summarise import PREDICTION
from benchmarks.plans import count_schemes, prepare_case, silent
from benchmarks.rows import describe_machine

CASES: Final = ("digits_mobilenet", "byte_lm", "minilm", "resnet18", "mobilenet_v2-b16")


def predict(case: Case, *, target: str, threads: int, plans: int) -> dict[str, Any]:
    """Predict and time random plans of one setting, all of them in one interleaved run."""
    say(case, f"threads={threads}: costs and {plans} random plans")
    deployment = check_deployment(
        target=target, runtime=None, batch=case.batch, sequence=None, threads=threads
    )
    stopwatch = find_stopwatch(deployment.profile, deployment.capability)
    if stopwatch is None:
        raise UsageError(f"{target} cannot be timed on this machine; use --target host")
    measure = _Measure(case=case, stopwatch=stopwatch, plans=plans, seed=threads)
    prepared = prepare_case(case, deployment, measure)
    problem = build_problem(prepared.setting)
    rows = [
        {
            "schemes": count_schemes(problem, choice),
            "predicted_s": float(f"{evaluate(problem, choice).latency_s:.6g}"),
            "measured_s": float(f"{seconds:.6g}"),
        }
        for choice, seconds in measure.found.items()
    ]
    setting = {"case": case.name, "threads": threads, "target": target}
    return {**setting, **errors_of(rows), "plans": rows}


@dataclass(slots=True, kw_only=True)
class _Measure:
    """Finds the costs of a setting, and times random plans beside. found: their seconds."""

    case: Case
    stopwatch: Stopwatch
    plans: int
    seed: int
    found: dict[Choice, float] = field(default_factory=dict[Choice, float])

    def __call__(self, setting: Setting) -> MeasuredCosts:
        fitted, bench = designs(setting), workbench(setting)
        drawn = random_choices(build_problem(setting), self.plans, self.seed, fitted)
        every = [*fitted, *drawn]
        timings = self.stopwatch.time_models(
            [partial(bench.build, choice) for choice in every],
            deployment_inputs(setting.graph, self.case.batch, None),
            threads=setting.threads,
            limit_s=LIMIT_S * len(every) / len(fitted),
            with_parts=True,
            say=silent,
        )
        seconds = [timing.seconds for timing in timings]
        self.found = dict(zip(drawn, seconds[len(fitted) :], strict=True))
        return explain(setting, fitted, timings[: len(fitted)], self.stopwatch.machine())


def random_choices(
    problem: Problem, count: int, seed: int, others: Sequence[Choice]
) -> list[Choice]:
    """Plans from nearly uniform to evenly mixed: each draws its own weights for the schemes.

    Every group takes a scheme that it can, with a probability in proportion to the plan's weight
    for it; weights are gamma distributed with shape 0.5, so that a few schemes prevail. None is
    one of ``others``.
    """
    draw = random.Random(seed)
    schemes = sorted({option.scheme for options in problem.candidates for option in options})
    found: dict[Choice, None] = {}
    while len(found) < count:
        weight = {scheme: draw.gammavariate(0.5, 1.0) + 1e-9 for scheme in schemes}
        choice = tuple(
            draw.choices(range(len(options)), [weight[option.scheme] for option in options])[0]
            for options in problem.candidates
        )
        if choice not in others:
            found[choice] = None
    return list(found)


def errors_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Relative errors of the predictions, and the rank correlation with what was measured."""
    predicted = np.array([row["predicted_s"] for row in rows])
    measured = np.array([row["measured_s"] for row in rows])
    errors = np.abs(predicted - measured) / measured
    return {
        "median_error": float(np.median(errors)),
        "p90_error": float(np.quantile(errors, 0.9)),
        "spearman": float(spearmanr(predicted, measured).statistic),
    }


def overall(settings: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Errors over all plans. Rank correlation: the mean over settings and, over all plans at once,
    the pooled one, which says little: models of very different size are ranked well by anything."""
    found = errors_of([row for setting in settings for row in setting["plans"]])
    ranked = [setting["spearman"] for setting in settings]
    return {**found, "spearman": float(np.mean(ranked)), "pooled_spearman": found["spearman"]}


def main() -> int:
    """Predict and time every setting, and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(case_names()))
    parser.add_argument("--target", default="host")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--plans", type=int, default=8, help="of every setting")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--redo", action="store_true", help="also settings that were done before")
    arguments = parser.parse_args()
    work = arguments.work / "predict"
    if arguments.redo:
        shutil.rmtree(work, ignore_errors=True)
    settings: list[dict[str, Any]] = []
    for name in arguments.cases or CASES:
        case = make_case(name)
        for threads in arguments.threads:
            kept = work / f"{name}-{threads}-{arguments.target}-{arguments.plans}.json"
            if not kept.exists():
                found = predict(
                    case,
                    target=arguments.target,
                    threads=threads,
                    plans=arguments.plans,
                )
                write_text(kept, json.dumps(found, indent=1) + "\n")
            settings.append(json.loads(kept.read_text(encoding="utf-8")))
    result = {
        "command": f"python -m {__spec__.name} {shlex.join(sys.argv[1:])}".strip(),
        "machine": describe_machine(),
        "overall": overall(settings),
        "settings": settings,
    }
    write_text(arguments.out / PREDICTION, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["overall"], indent=1))
    return 0


if __name__ == "__main__":
    torch.set_num_threads(2)
    sys.exit(main())
