"""One model's best plan over many devices, and why they differ.

    python -m benchmarks.cost.decisions [--targets NAME ...]

The vision transformer of the examples, 1024 pictures at a time, planned by ``advise`` with its
default objective: the fastest plan whose divergence stays within 0.01. The reasons are the plan's
own: what the device computes each scheme in, and what the time goes to. Writes
``decisions.json``; targets that are not named keep their entries.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from advisor.api import advise
from advisor.atomic import write_text
from advisor.plan import Plan, latencies
from advisor.profiles.loader import load_profile
from advisor.targets.registry import capability_named
from examples import digits_vit

RESULTS: Final = Path(__file__).with_name("decisions.json")
BATCH: Final = 1024
TRIALS: Final = 4
SAMPLES: Final = 4
"""Calibration batches."""

SCHEMES: Final = ("fp32", "fp16", "bf16", "fp8", "w8a8", "w8a8-dynamic", "w8", "w4-g32", "w4-g64")
"""What plans choose from, where the runtime has it."""

TARGETS: Final = (
    "raspberry-pi-4",
    "arm-neon",
    "cortex-x3",
    "intel-vnni",
    "sapphire-rapids",
    "m2:gpu",
    "m2",
    "m4",
    "v100",
    "a100",
    "h100",
    "tpu-v5e",
)


def main() -> int:
    """Plan for every target, and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", nargs="+", default=TARGETS, metavar="NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    if RESULTS.exists():
        found = json.loads(RESULTS.read_text(encoding="utf-8"))
    for target in arguments.targets:
        found[target] = describe(plan_for(target))
        print(target, json.dumps(found[target]["weights"]), flush=True)
        ordered = {name: found[name] for name in TARGETS if name in found}
        write_text(RESULTS, json.dumps(ordered, indent=1) + "\n")
    return 0


def plan_for(target: str) -> Plan:
    """What ``advise`` makes of the model there."""
    able = capability_named(load_profile(target).runtime).schemes
    model, example, batches = digits_vit.build()
    return advise(
        model,
        target=target,
        inputs=example,
        calibration=batches[:SAMPLES],
        output="logits",
        batch=BATCH,
        schemes=[scheme for scheme in SCHEMES if scheme in able],
        trials=TRIALS,
        cache=False,
    )


def describe(plan: Plan) -> dict[str, Any]:
    """The plan's row: share of weights per scheme, times, and the plan's own reasons."""
    assert plan.predicted.latency_s is not None
    return {
        "runtime": plan.runtime,
        "weights": shares(plan),
        "latency_s": plan.predicted.latency_s.value,
        "uniform_s": latencies(plan.baselines),
        "breakdown": asdict(plan.breakdown),
        "bound": dict(Counter(layer.bound for layer in plan.layers)),
        "arithmetic": dict(plan.arithmetic),
        "outcome": plan.outcome,
    }


def shares(plan: Plan) -> dict[str, float]:
    """Share of the weights in each scheme, the largest first."""
    params: Counter[str] = Counter()
    for layer in plan.layers:
        params[layer.scheme] += layer.params
    return {name: round(count / params.total(), 3) for name, count in params.most_common()}


def to_markdown(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One row per target, then what each computes the schemes in."""
    lines = [
        "| profile | runtime | weights in | ms | fastest uniform plans, ms | time goes to |",
        "|---|---|---|---|---|---|",
    ]
    for target, row in found.items():
        parts = {key[:-2]: value for key, value in row["breakdown"].items() if value}
        total = sum(parts.values())
        spent = ", ".join(f"{name} {value / total:.0%}" for name, value in parts.items())
        lines.append(
            f"| `{target}` | {row['runtime']} | {_shares(row['weights'])} | "
            f"{row['latency_s'] * 1e3:.3g} | {_fastest(row['uniform_s'])} | {spent} |"
        )
    lines += ["", "What each computes in, as its plan says it:", ""]
    for target, row in found.items():
        said = "; ".join(f"{name} {text}" for name, text in _told(row["arithmetic"]))
        lines.append(f"- `{target}`: {said}.")
    return lines


def _told(arithmetic: Mapping[str, str]) -> Sequence[tuple[str, str]]:
    """Schemes of one text together."""
    texts: dict[str, list[str]] = {}
    for scheme, text in arithmetic.items():
        texts.setdefault(text, []).append(f"`{scheme}`")
    return [(", ".join(schemes), text) for text, schemes in texts.items()]


def _shares(weights: Mapping[str, float]) -> str:
    return ", ".join(f"`{name}` {share:.0%}" for name, share in weights.items())


def _fastest(uniform: Mapping[str, float], most: int = 3) -> str:
    ordered = sorted(uniform.items(), key=lambda item: item[1])[:most]
    return ", ".join(f"`{name}` {seconds * 1e3:.3g}" for name, seconds in ordered)


if __name__ == "__main__":
    sys.exit(main())
