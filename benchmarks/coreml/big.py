"""A transformer of more than 100 million parameters: converted to Core ML, verified, weighed.

    python -m benchmarks.coreml.big [--layers N] [--out FILE]

The model and the steps are those of ``benchmarks/big.py``; the plan has six schemes. "convert" is
from the quantized graph to the package on disk; "write the check" saves the simulation, runs the
float model on random rows, and is part of ``compile`` too, as "verify" is. Writes big.json beside
this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.big import Big, run
from benchmarks.steps import Step, step

if TYPE_CHECKING:
    from advisor.passes.graph import QuantizedGraph

PINS: Final = {
    "op:embedding": "w8",
    "*.query": "w8",
    "*.key": "w4",
    "*.value": "w4-g32",
    "*.intermediate.dense": "lut4",
    "*.layer.*.output.dense": "w8a8",
    "*.attention.output.dense": "lut6",
}


def write(quantized: QuantizedGraph, out: Path, steps: list[Step]) -> int:
    """The package, then what it is checked against."""
    from advisor.targets.coreml.emit import write_package
    from advisor.targets.coreml.options import DEFAULTS
    from advisor.targets.manifest import CHECK_FOLDER
    from advisor.targets.signature import describe_inputs
    from advisor.targets.simulation import save_simulation

    with step("convert", steps):
        fixed = write_package(quantized, out, DEFAULTS)
    with step("write the check", steps):
        names = tuple(record.name for record in describe_inputs(fixed.float_graph))
        save_simulation(fixed, names, out / CHECK_FOLDER)
    package = out / "model.mlpackage"
    return sum(path.stat().st_size for path in package.rglob("*"))


BIG: Final = Big(
    runtime="coreml",
    profile="m2",
    pins=PINS,
    packages=("torch", "transformers", "coremltools"),
    results=Path(__file__).with_suffix(".json"),
    write=write,
)

if __name__ == "__main__":
    run(BIG)
