"""A transformer of more than 100 million parameters: written for TensorRT, compiled, verified.

    python -m benchmarks.tensorrt.big [--layers N] [--out FILE]

The model and the steps are those of ``benchmarks/big.py``; the plan, for an L4, mixes int8, float8,
int4 and float16. "write" makes every file of the artifact; "verify" has TensorRT-RTX compile it,
reads the kernel of every layer back, and runs the file layer by layer and as a whole. Writes
big.json beside this file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.big import Big, run
from benchmarks.steps import Step, step

if TYPE_CHECKING:
    from advisor.passes.graph import QuantizedGraph

PINS: Final = {
    "op:embedding": "fp16",
    "op:matmul": "a16a16",
    "*.query": "w8a8",
    "*.key": "w8",
    "*.value": "fp16",
    "*.intermediate.dense": "w4-g128",
    "*.layer.*.output.dense": "fp8",
    "*.attention.output.dense": "w8a8",
    "*.5.attention.*.sdpa*": "a8a8-fp8",
    "*.6.attention.*.sdpa*": "a8a8",
}


def write(quantized: QuantizedGraph, out: Path, steps: list[Step]) -> int:
    """Every file of the artifact; what counts is the model alone, from which an engine is built."""
    from advisor.targets.tensorrt.emit import MODEL_FILE, write_artifact
    from advisor.targets.tensorrt.options import TensorrtOptions

    with step("write", steps):
        write_artifact(quantized, out, TensorrtOptions(sm="89"))
    return sum(path.stat().st_size for path in out.glob(f"{MODEL_FILE}*"))


def found(artifact: Path) -> dict[str, Any]:
    """What the compiler made of it, and how many layers' kernels read what."""
    from advisor.targets.acceptance import ACCEPTANCE_FILE

    read: dict[str, Any] = json.loads((artifact / ACCEPTANCE_FILE).read_text(encoding="utf-8"))
    kernels: dict[str, int] = {}
    for layer in read["layers"]:
        kernels[layer["kernel"]] = kernels.get(layer["kernel"], 0) + 1
    return {"compiled": read["compiled"], "kernels_read": dict(sorted(kernels.items()))}


BIG: Final = Big(
    runtime="tensorrt",
    profile="l4",
    pins=PINS,
    packages=("torch", "transformers", "tensorrt_rtx", "onnxruntime", "onnx"),
    results=Path(__file__).with_suffix(".json"),
    write=write,
    found=found,
)

if __name__ == "__main__":
    run(BIG)
