"""Predicted against measured latency of random plans.

    python -m benchmarks.onnxruntime.predict [CASE ...] [--target host] [--threads 1 2] [--plans 8]

The prediction is the one ``advise`` plans with. None of these plans was timed to make it. Each
setting (model, batch, threads) is kept in ``--work`` when it is done; a run that was stopped goes
on with the next.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from scipy.stats import spearmanr

from advisor.atomic import write_text
from advisor.evidence import Evidence
from advisor.search.problem import Choice
from benchmarks.onnxruntime.compare import RESULTS, WORK, say
from benchmarks.onnxruntime.measure import caller, open_variant
from benchmarks.onnxruntime.models import Case, case_names, make_case
from benchmarks.onnxruntime.plans import (
    count_schemes,
    open_advisor,
    predicted_seconds,
    uniform,
    write_choice,
)
from benchmarks.onnxruntime.rows import describe_machine
from benchmarks.onnxruntime.summarise import PREDICTION
from benchmarks.onnxruntime.timing import time_variants

CASES: Final = ("digits_mobilenet", "byte_lm", "minilm", "resnet18", "mobilenet_v2-b16")
REFERENCE: Final = "reference"
"""float32: its costs were found from its own timing, so what it is off by is the machine's drift
between the two runs, and no fault of the prediction."""


def predict(
    case: Case, *, target: str, threads: int, plans: int, seconds: float, work: Path
) -> dict[str, Any]:
    """Predict and time random plans of one setting, all of them in one interleaved run."""
    say(case, f"threads={threads}: costs")
    with open_advisor(case, target=target, threads=threads, trials=1) as advisor:
        evidence = advisor.evidence
        choices = random_choices(evidence, plans, seed=threads)
        say(case, f"threads={threads}: {len(choices)} random plans")
        variants = {
            f"plan {i}": write_choice(evidence, f"plan {i}", choice, work / f"{i}.onnx")
            for i, choice in enumerate(choices)
        }
        variants[REFERENCE] = write_choice(
            evidence, REFERENCE, uniform(evidence, "fp32"), work / "reference.onnx"
        )
    calls = {
        name: caller(open_variant(variant, threads, patterns=False), case.example)
        for name, variant in variants.items()
    }
    found = time_variants(calls, reference=REFERENCE, seconds=seconds)
    rows = [
        {
            "schemes": count_schemes(evidence, choice),
            "predicted_s": float(f"{predicted_seconds(evidence, choice):.6g}"),
            "measured_s": float(f"{found[f'plan {i}'].low_s:.6g}"),
        }
        for i, choice in enumerate(choices)
    ]
    reference = {
        "predicted_s": predicted_seconds(evidence, uniform(evidence, "fp32")),
        "measured_s": found[REFERENCE].low_s,
    }
    setting = {"case": case.name, "threads": threads, "target": target}
    return {**setting, **errors_of(rows), "float32": reference, "plans": rows}


def random_choices(evidence: Evidence, count: int, seed: int) -> list[Choice]:
    """Plans from nearly uniform to evenly mixed: each draws its own weights for the schemes.

    Every group takes a scheme that it can, with a probability in proportion to the plan's weight
    for it; weights are gamma distributed with shape 0.5, so that a few schemes prevail.
    """
    draw = random.Random(seed)
    candidates = evidence.problem.candidates
    schemes = sorted({option.scheme for options in candidates for option in options})
    found: dict[Choice, None] = {}
    while len(found) < count:
        weight = {scheme: draw.gammavariate(0.5, 1.0) + 1e-9 for scheme in schemes}
        choice = tuple(
            draw.choices(range(len(options)), [weight[option.scheme] for option in options])[0]
            for options in candidates
        )
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
    """Errors over all plans. Rank correlation: the mean over settings, since between models of
    very different size any prediction ranks well."""
    rows = [row for setting in settings for row in setting["plans"]]
    ranked = [setting["spearman"] for setting in settings]
    return {**errors_of(rows), "spearman": float(np.mean(ranked))}


def main() -> int:
    """Predict and time every setting, and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(case_names()))
    parser.add_argument("--target", default="host")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--plans", type=int, default=8, help="of every setting")
    parser.add_argument("--seconds", type=float, default=8.0, help="of every setting's timing")
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
                    seconds=arguments.seconds,
                    work=work / "files",
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
