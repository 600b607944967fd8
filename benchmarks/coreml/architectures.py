"""Which architectures go all the way through Core ML, and why the others do not.

    python -m benchmarks.coreml.architectures            # all, about an hour on two cores
    python -m benchmarks.coreml.architectures bert swin  # these; the other rows stay

Every model is captured, planned for an M2 under free choice and compiled; it is then emitted under
a plan that takes all schemes in turn and under one of 8-bit weights. Every package is read back,
its integers compared byte for byte with the plan's, evaluated, and held against the simulation.
Writes architectures.json beside this file, after each model, and docs/architectures-coreml.md. The
weights are random: this is about structure, never about accuracy or speed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from benchmarks.architectures import ROOT, Sweep, kept, layers, mixed, run, verified

INTRODUCTION: Final = """# Architectures through Core ML

The models of [architectures.md](architectures.md), through Core ML: captured, compared with the
model, planned for an M2 (macOS 15, iOS 18) under free choice, converted by coremltools and
compiled; then emitted under a plan that takes the schemes in turn ("mixed"), and with 8-bit weights
in all layers that can take them. Every package is read back layer by layer, the integers and tables
in it compared byte for byte with the plan's, evaluated layer by layer and as a whole in float16 by
the MIL evaluator ([coreml.md](coreml.md)), and compared with the simulation. **Nothing of this has
run on Apple hardware**, and random weights say nothing about accuracy or speed.

"mixed" counts the layers under each scheme of that plan. "float" counts layers without a quantized
form here, by operator: they are in the package as they are in the model.

Written by `python -m benchmarks.coreml.architectures`.

"""

SWEEP: Final = Sweep(
    runtime="coreml",
    profile="m2",
    plans=("mixed", "w8"),
    trials=1,
    packages=("torch", "transformers", "coremltools"),
    results=Path(__file__).with_suffix(".json"),
    page=ROOT / "docs" / "architectures-coreml.md",
    introduction=INTRODUCTION,
    columns={"layers": layers, "float": kept, "mixed": mixed, "verified": verified},
)

if __name__ == "__main__":
    run(SWEEP, sys.argv[1:])
