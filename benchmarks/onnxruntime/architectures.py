"""Which architectures go all the way through ONNX Runtime, and why the others do not.

    python -m benchmarks.onnxruntime.architectures            # all, about an hour on two cores
    python -m benchmarks.onnxruntime.architectures bert swin  # these; the other rows stay

Every model is captured, planned under free choice, compiled, and then emitted under each uniform
scheme; every artifact is read back, executed and held against the simulation. Writes
architectures.json beside this file, after each model, and docs/architectures.md. The weights are
random: this is about structure, never about accuracy or speed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from benchmarks.architectures import ROOT, Row, Sweep, kept, layers, run, verified

INTRODUCTION: Final = """# Architectures

Every model below is the class that transformers or torch ships, unmodified, built from a small
configuration with random weights. For each: the captured graph is compared with the model, a plan
is made under free choice and compiled, and then all layers that can take it are put under each
uniform scheme. Every artifact is read back layer by layer, executed by ONNX Runtime, and compared
with the simulation. Random weights say nothing about accuracy or speed.

"dynamic" are the dimensions that may change after compiling. "float" counts layers without a
quantized form here, by operator. An output that is left out is a key-value cache or another object
that a graph cannot return: plans are for one forward pass without a cache.

timm's models are not in the list: timm imports torchvision, and the torchvision of the package
index does not load beside a CPU build of torch ("operator torchvision::nms does not exist").

Written by `python -m benchmarks.onnxruntime.architectures`.

"""


def _dynamic(row: Row) -> str:
    return ", ".join(row["dynamic"])


def _left_out(row: Row) -> str:
    return ", ".join(f"`{part}`" for part in row["left_out"])


SWEEP: Final = Sweep(
    runtime="onnxruntime",
    plans=("w8a8", "w8", "w4-g32"),
    trials=3,
    packages=("torch", "transformers", "onnxruntime", "onnx"),
    results=Path(__file__).with_suffix(".json"),
    page=ROOT / "docs" / "architectures.md",
    introduction=INTRODUCTION,
    columns={
        "layers": layers,
        "float": kept,
        "dynamic": _dynamic,
        "left out": _left_out,
        "verified": verified,
    },
)

if __name__ == "__main__":
    run(SWEEP, sys.argv[1:])
