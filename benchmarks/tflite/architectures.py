"""Which architectures go all the way through LiteRT, and why the others do not.

    python -m benchmarks.tflite.architectures            # all, about an hour on two cores
    python -m benchmarks.tflite.architectures bert swin  # these; the other rows stay

Every model is captured, planned under free choice and compiled; converted once, it is then emitted
under a plan that takes all schemes in turn and under two uniform ones. Every artifact is read back,
its integers compared byte for byte with the plan's, executed, and held against the simulation.
Writes architectures.json beside this file, after each model, and docs/architectures-tflite.md. The
weights are random: this is about structure, never about accuracy or speed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.architectures import ROOT, Row, Sweep, counts, kept, layers, mixed, run, verified

INTRODUCTION: Final = """# Architectures through LiteRT

The models of [architectures.md](architectures.md), through LiteRT (TFLite): captured, compared with
the model, planned under free choice, converted by litert-torch, compiled; then emitted under a plan
that takes the schemes in turn ("mixed"), and with all layers that can take it under each uniform
scheme. Every artifact is read back layer by layer, the integers in it compared byte for byte with
the plan's, executed with XNNPACK layer by layer and as a whole, and compared with the simulation by
the same rule as everywhere. Random weights say nothing about accuracy or speed.

"mixed" counts the layers under each scheme of that plan. "float" counts layers without a quantized
form here, by operator: they are in the file as they are in the model. "parts" are those that
XNNPACK runs of the mixed plan's file, and beside them the operators that it leaves to LiteRT's own
kernels.

Two norms of one input with equal gains, which untrained ones have, are one value to the converter;
a plan that rounds it for one reader only is refused (gpt-neox, where they lie side by side).

Written by `python -m benchmarks.tflite.architectures`.

"""


def _parts(row: Row) -> str:
    found: Mapping[str, Any] = row.get("parts", {}).get("mixed") or {}
    if not found:
        return ""
    left = counts(found["operators"])
    return f"{found['delegated']}{f'; {left}' if left else ''}"


SWEEP: Final = Sweep(
    runtime="tflite",
    plans=("mixed", "w8a8", "w8a8-dynamic"),
    trials=1,
    packages=("torch", "transformers", "litert-torch", "ai-edge-litert"),
    results=Path(__file__).with_suffix(".json"),
    page=ROOT / "docs" / "architectures-tflite.md",
    introduction=INTRODUCTION,
    columns={
        "layers": layers,
        "float": kept,
        "mixed": mixed,
        "parts": _parts,
        "verified": verified,
    },
)

if __name__ == "__main__":
    run(SWEEP, sys.argv[1:])
