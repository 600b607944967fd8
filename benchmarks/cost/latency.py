"""Modelled and measured latency of random mixed plans on this machine, in one interleaved run.

    python -m benchmarks.cost.latency [MODEL ...] [--runtimes NAME ...] [--threads 1 2] [--plans 4]

By default 192 plans: six architectures that no profile was fitted to, the transformers at two batch
sizes, on ONNX Runtime and LiteRT, with one thread and two. Every plan has two predictions: by this
machine's profile ("host"), which knows a few kernels and none of the models, and by the costs that
``advise`` finds for the model, from plans that are timed in turns with the random ones. The noise
floor is what predicting a plan by timing it a second time would be off by. Needs a machine that
does nothing else. A setting that is in ``--out`` is kept, so a run that was stopped goes on;
``--again`` times nothing and asks the profile anew about the plans that are there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch
from scipy.stats import spearmanr

from advisor.assemble import build_problem
from advisor.atomic import write_text
from advisor.budget import Budget
from advisor.errors import UsageError
from advisor.measure.machine import find_stopwatch
from advisor.measure.measure import LIMIT_S, explain, workbench
from advisor.measure.terms import designs
from advisor.passes.shapes import deployment_inputs
from advisor.prepare import Prepared, check_deployment, prepare
from advisor.search.problem import Choice, Problem, evaluate
from advisor.setting import Setting
from advisor.targets.base import Stopwatch
from benchmarks.cost.models import build
from benchmarks.onnxruntime.predict import errors_of, random_choices
from benchmarks.plans import SPEED_SCHEMES, silent
from benchmarks.rows import describe_machine

RESULTS: Final = Path(__file__).with_name("latency.json")
MODELS: Final[Mapping[str, tuple[int, tuple[int, ...]]]] = {
    "resnet-18": (224, (1,)),
    "mobilenet-v1": (224, (1,)),
    "mobilenet-v2": (224, (1,)),
    "efficientnet-b0": (224, (1,)),
    "minilm-l6": (128, (1, 8)),
    "distilbert": (64, (1, 4)),
}
"""By name: pixels or tokens, and batch sizes."""

RUNTIMES: Final = ("onnxruntime", "tflite")
REPEATED: Final = 2
"""Plans of every setting that are timed twice: the noise floor."""

DRAWS: Final = 200
"""Of noise, over which the ceiling of a rank correlation is averaged."""


def main() -> int:
    """Predict and time every setting; write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--plans", type=int, default=6, help="of every setting")
    parser.add_argument("--size", type=int, help="pixels or tokens, to try the script out")
    parser.add_argument("--limit", type=float, default=1.0, help="of the time for each setting")
    parser.add_argument("--again", action="store_true", help="predict anew by the profile alone")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    if arguments.out.exists():
        found = json.loads(arguments.out.read_text(encoding="utf-8"))["settings"]
    cases = [
        (name, batch, runtime)
        for name in arguments.models or MODELS
        for batch in MODELS[name][1]
        for runtime in arguments.runtimes
    ]
    for name, batch, runtime in cases:
        keys = {f"{name} x {batch}/{runtime}/{threads}": threads for threads in arguments.threads}
        wanted = {key: n for key, n in keys.items() if (key in found) == arguments.again}
        if not wanted:
            continue
        size = arguments.size or MODELS[name][0]
        prepared, stopwatch = set_up(name, size, batch=batch, runtime=runtime)
        for key, threads in wanted.items():
            setting = replace(prepared.setting, threads=threads, costs={})
            if arguments.again:
                found[key] |= predict_again(setting, found[key]["plans"])
            else:
                found[key] = {"size": size, "batch": batch} | measure(
                    setting, stopwatch, plans=arguments.plans, limit=arguments.limit
                )
            say = {each: found[key][each] for each in ("modelled", "timed", "noise")}
            print(key, json.dumps(say), flush=True)
            result = {
                "machine": describe_machine(),
                "overall": overall(found),
                "settings": found,
            }
            write_text(arguments.out, json.dumps(result, indent=1) + "\n")
    return 0


def set_up(name: str, size: int, *, batch: int, runtime: str) -> tuple[Prepared, Stopwatch]:
    """The planning problem of a model, whose costs are modelled, and what times its plans."""
    deployment = check_deployment(
        target="host", runtime=runtime, batch=batch, sequence=None, threads=None
    )
    stopwatch = find_stopwatch(deployment.profile, deployment.capability)
    if stopwatch is None:
        raise UsageError("ADVISOR_MEASURE=never is set: nothing is timed")
    subject = build(name, size)
    able = deployment.capability.schemes
    prepared = prepare(
        subject.model,
        subject.inputs,
        None,
        deployment,
        budget=Budget(),
        schemes=[scheme for scheme in SPEED_SCHEMES if scheme in able],
        pins={},
        on_unsupported="keep",
    )
    return prepared, stopwatch


def measure(setting: Setting, stopwatch: Stopwatch, *, plans: int, limit: float) -> dict[str, Any]:
    """One setting: its random plans with both predictions, and the noise floor.

    limit: share of the usual time. noise: median difference between two timings of a plan.
    """
    bench = workbench(setting)
    modelled, fitted, drawn = draw(setting, plans)
    every = [*fitted, *drawn, *drawn[:REPEATED]]
    timings = stopwatch.time_models(
        [partial(bench.build, choice) for choice in every],
        deployment_inputs(setting.graph, setting.batch, None),
        threads=setting.threads,
        limit_s=LIMIT_S * limit * len(every) / len(fitted),
        with_parts=True,
        say=silent,
    )
    own = [timing.seconds for timing in timings[len(fitted) :]]
    again = zip(own, own[plans:], strict=False)
    costs = explain(setting, fitted, timings[: len(fitted)], stopwatch.machine())
    timed = build_problem(setting.with_measured(costs))
    rows = [
        {
            "modelled_s": _seconds(modelled, choice),
            "timed_s": _seconds(timed, choice),
            "measured_s": seconds,
        }
        for choice, seconds in zip(drawn, own, strict=False)
    ]
    return {
        "modelled": _errors(rows, "modelled_s"),
        "timed": _errors(rows, "timed_s"),
        "noise": median([abs(one - two) / two for one, two in again]),
        "plans": rows,
    }


def draw(setting: Setting, plans: int) -> tuple[Problem, Sequence[Choice], Sequence[Choice]]:
    """The problem, the plans that costs are found from, and the random ones."""
    problem, fitted = build_problem(setting), designs(setting)
    return problem, fitted, random_choices(problem, plans, setting.threads or 1, fitted)


def predict_again(setting: Setting, plans: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What the profile says of plans that were timed."""
    problem, _, drawn = draw(setting, len(plans))
    pairs = zip(plans, drawn, strict=True)
    rows = [{**plan, "modelled_s": _seconds(problem, choice)} for plan, choice in pairs]
    return {"modelled": _errors(rows, "modelled_s"), "plans": rows}


def overall(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Errors over all plans, by both predictions, rank correlations, and the median noise floor.

    spearman: the mean over settings. by_model: over a model's plans on either runtime, with either
    number of threads; ceiling: what the noise would leave of a perfect prediction's. settings: by
    "model x batch/runtime/threads".
    """
    every = list(settings.values())
    noisy = [[plan | {"noise": each["noise"]} for plan in each["plans"]] for each in every]
    rows = [row for plans in noisy for row in plans]
    models: dict[str, list[Mapping[str, float]]] = {}
    for key, plans in zip(settings, noisy, strict=True):
        models.setdefault(key.split("/")[0], []).extend(plans)
    found: dict[str, Any] = {"plans": len(rows)}
    for kind in ("modelled", "timed"):
        found[kind] = {
            **_errors(rows, f"{kind}_s"),
            "spearman": float(np.mean([setting[kind]["spearman"] for setting in every])),
            "by_model": {
                name: _errors(own, f"{kind}_s")["spearman"] for name, own in models.items()
            },
        }
    found["ceiling"] = {
        "spearman": float(np.mean([_ceiling(plans) for plans in noisy])),
        "by_model": {name: _ceiling(own) for name, own in models.items()},
    }
    return {**found, "noise": median([setting["noise"] for setting in every])}


def _ceiling(plans: Sequence[Mapping[str, float]]) -> float:
    """Rank correlation of the times with themselves under as much noise as a timing has.

    A plan's "noise" is the median difference of two timings, each of which has a normal error: of
    its deviation that is 0.674 times the root of two.
    """
    rng = np.random.default_rng(0)
    times = np.array([plan["measured_s"] for plan in plans])
    deviation = np.array([plan["noise"] for plan in plans]) / (0.674 * np.sqrt(2))
    draws = times * np.exp(rng.normal(0, 1, (DRAWS, len(times))) * deviation)
    return float(np.mean([spearmanr(times, draw).statistic for draw in draws]))


def _errors(rows: Sequence[Mapping[str, float]], predicted: str) -> dict[str, float]:
    named = [{"predicted_s": row[predicted], "measured_s": row["measured_s"]} for row in rows]
    return errors_of(named)


def _seconds(problem: Problem, choice: Choice) -> float:
    return float(f"{evaluate(problem, choice).latency_s:.6g}")


if __name__ == "__main__":
    torch.set_num_threads(2)
    sys.exit(main())
