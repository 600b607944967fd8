"""Modelled and measured latency of random mixed plans on this machine, in one interleaved run.

    python -m benchmarks.cost.latency [MODEL ...] [--runtimes NAME ...] [--threads 1 2] [--plans 4]

By default 128 plans: six architectures that no profile was fitted to, the transformers at two batch
sizes, on ONNX Runtime and LiteRT, with one thread and two. Every plan has two predictions: by this
machine's profile ("host"), which knows a few kernels and none of the models, and by the costs that
``advise`` finds for the model, from plans that are timed in turns with the random ones. The noise
floor is what predicting a plan by timing it a second time would be off by. Needs a machine that
does nothing else. A setting that is in ``--out`` is kept, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

from advisor.assemble import build_problem
from advisor.atomic import write_text
from advisor.budget import Budget
from advisor.errors import UsageError
from advisor.measure.costs import MeasuredCosts
from advisor.measure.machine import find_stopwatch
from advisor.measure.measure import LIMIT_S, explain, workbench
from advisor.measure.terms import designs
from advisor.passes.shapes import deployment_inputs
from advisor.prepare import check_deployment, prepare
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


def main() -> int:
    """Predict and time every setting; write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--plans", type=int, default=4, help="of every setting")
    parser.add_argument("--size", type=int, help="pixels or tokens, to try the script out")
    parser.add_argument("--limit", type=float, default=1.0, help="of the time for each setting")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    if arguments.out.exists():
        found = json.loads(arguments.out.read_text(encoding="utf-8"))["settings"]
    settings = [
        (name, batch, runtime, threads)
        for name in arguments.models or MODELS
        for batch in MODELS[name][1]
        for runtime in arguments.runtimes
        for threads in arguments.threads
    ]
    for name, batch, runtime, threads in settings:
        key = f"{name} x {batch}/{runtime}/{threads}"
        if key in found:
            continue
        found[key] = measure(
            name,
            arguments.size or MODELS[name][0],
            batch=batch,
            runtime=runtime,
            threads=threads,
            plans=arguments.plans,
            limit=arguments.limit,
        )
        say = {each: found[key][each] for each in ("modelled", "timed", "noise")}
        print(key, json.dumps(say), flush=True)
        result = {
            "machine": describe_machine(),
            "overall": overall(list(found.values())),
            "settings": found,
        }
        write_text(arguments.out, json.dumps(result, indent=1) + "\n")
    return 0


def measure(
    name: str, size: int, *, batch: int, runtime: str, threads: int, plans: int, limit: float
) -> dict[str, Any]:
    """One setting: its random plans with both predictions, and the noise floor."""
    deployment = check_deployment(
        target="host", runtime=runtime, batch=batch, sequence=None, threads=threads
    )
    stopwatch = find_stopwatch(deployment.profile, deployment.capability)
    if stopwatch is None:
        raise UsageError("ADVISOR_MEASURE=never is set: nothing is timed")
    subject = build(name, size)
    clock = _Clock(stopwatch=stopwatch, plans=plans, seed=threads, limit=limit)
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
        measure=clock,
    )
    timed = build_problem(prepared.setting)
    modelled = build_problem(replace(prepared.setting, measured=None))
    rows = [
        {
            "modelled_s": _seconds(modelled, choice),
            "timed_s": _seconds(timed, choice),
            "measured_s": seconds,
        }
        for choice, seconds in clock.found.items()
    ]
    return {
        "size": size,
        "batch": batch,
        "modelled": _errors(rows, "modelled_s"),
        "timed": _errors(rows, "timed_s"),
        "noise": clock.noise,
        "plans": rows,
    }


@dataclass(slots=True, kw_only=True)
class _Clock:
    """Finds the costs of a setting and times random plans beside, some of them twice.

    found: seconds of the random plans. noise: median difference between two timings of a plan.
    """

    stopwatch: Stopwatch
    plans: int
    seed: int
    limit: float
    found: dict[Choice, float] = field(default_factory=dict[Choice, float])
    noise: float = 0.0

    def __call__(self, setting: Setting) -> MeasuredCosts:
        fitted, bench = designs(setting), workbench(setting)
        drawn = random_choices(build_problem(setting), self.plans, self.seed, fitted)
        every = [*fitted, *drawn, *drawn[:REPEATED]]
        timings = self.stopwatch.time_models(
            [partial(bench.build, choice) for choice in every],
            deployment_inputs(setting.graph, setting.batch, None),
            threads=setting.threads,
            limit_s=LIMIT_S * self.limit * len(every) / len(fitted),
            with_parts=True,
            say=silent,
        )
        seconds = [timing.seconds for timing in timings]
        own = seconds[len(fitted) :]
        self.found = dict(zip(drawn, own, strict=False))
        again = zip(own[: len(drawn)], own[len(drawn) :], strict=False)
        self.noise = median([abs(one - two) / two for one, two in again])
        return explain(setting, fitted, timings[: len(fitted)], self.stopwatch.machine())


def overall(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Errors over all plans, by both predictions, and the median noise floor."""
    rows = [row for setting in settings for row in setting["plans"]]
    return {
        "plans": len(rows),
        "modelled": _errors(rows, "modelled_s"),
        "timed": _errors(rows, "timed_s"),
        "noise": median([setting["noise"] for setting in settings]),
    }


def _errors(rows: Sequence[Mapping[str, float]], predicted: str) -> dict[str, float]:
    named = [{"predicted_s": row[predicted], "measured_s": row["measured_s"]} for row in rows]
    return errors_of(named)


def _seconds(problem: Problem, choice: Choice) -> float:
    return float(f"{evaluate(problem, choice).latency_s:.6g}")


if __name__ == "__main__":
    torch.set_num_threads(2)
    sys.exit(main())
