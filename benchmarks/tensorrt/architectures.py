"""Which architectures TensorRT's compiler takes as planned, and why not the others.

    python -m benchmarks.tensorrt.architectures            # all, about 40 minutes
    python -m benchmarks.tensorrt.architectures bert swin  # these; the other rows stay

Every model is captured and planned for an RTX 5090; it is then emitted under plans that take all
schemes of a compute capability in turn: those of sm80, compiled for sm80 and sm86, those of sm89,
and those of sm120. Every artifact is compiled by TensorRT-RTX with its batch dynamic where
the model's is, every layer's kernel is read back, and the numbers of the file are held against the
simulation. Writes architectures.json beside this file, after each model, and
docs/architectures-tensorrt.md. The weights are random: this is about structure, never about
accuracy or speed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from benchmarks.architectures import ROOT, Row, Sweep, kept, layers, run, verified

INTRODUCTION: Final = """# Architectures through TensorRT's compiler

The models of [architectures.md](architectures.md), for NVIDIA GPUs: captured, compared with the
model, planned for an RTX 5090, then emitted under plans that take in turn all schemes that a
compute capability has ("mixed@80" for sm80, and so on; sm86 has those of sm80, so there the same
file is compiled once more). TensorRT-RTX compiles every artifact, with dynamic dimensions where the
model has them. A model goes all the way when the kernel of every layer reads
what is planned for it, and the file's numbers, layer by layer and as a whole, agree with the
simulation. Nothing ran on a GPU.

"mixed" counts the layers under each scheme for sm120. "float" counts layers without a quantized
form here, by operator.

Written by `python -m benchmarks.tensorrt.architectures`.

"""


def _mixed(row: Row) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(row.get("mixed", {}).items()))


def _dynamic(row: Row) -> str:
    return ", ".join(row["dynamic"])


SWEEP: Final = Sweep(
    runtime="tensorrt",
    plans=("mixed@80", "mixed@86", "mixed@89", "mixed@120"),
    trials=1,
    free=False,
    profile="rtx-5090",
    packages=("torch", "transformers", "tensorrt_rtx", "onnxruntime", "onnx"),
    results=Path(__file__).with_suffix(".json"),
    page=ROOT / "docs" / "architectures-tensorrt.md",
    introduction=INTRODUCTION,
    columns={
        "layers": layers,
        "float": kept,
        "dynamic": _dynamic,
        "mixed": _mixed,
        "verified": verified,
    },
)

if __name__ == "__main__":
    run(SWEEP, sys.argv[1:])
