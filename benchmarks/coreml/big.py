"""A transformer of more than 100 million parameters: converted to Core ML, verified, weighed.

    python -m benchmarks.coreml.big [--layers N] [--out FILE]

BERT-base with random weights (109 million parameters), a plan of six schemes, one thread. Planning,
converting and verifying each run in a process of their own. "convert" is from the quantized graph
to the package on disk; "write the check" saves the simulation, runs the float model on random rows,
and is part of ``compile`` too, as "verify" is. Writes big.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from advisor.doctor import read_cpu
from benchmarks.steps import Step, step

LAYERS: Final = 12
TOKENS: Final = 128
BATCHES: Final = 2

PINS: Final = {
    "op:embedding": "w8",
    "*.query": "w8",
    "*.key": "w4",
    "*.value": "w4-g32",
    "*.intermediate.dense": "lut4",
    "*.layer.*.output.dense": "w8a8",
    "*.attention.output.dense": "lut6",
}
"""Scheme by pin; what is named last wins."""

ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def main() -> None:
    """Every step in a process of its own; write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--folder", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=list(CHILDREN), default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        found = CHILDREN[arguments.child](arguments.folder, arguments.layers)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        sys.stdout.write(json.dumps({**found, f"{arguments.child}_process_bytes": most}) + "\n")
        return
    row: dict[str, Any] = {"steps": []}
    with tempfile.TemporaryDirectory(prefix="advisor-big-") as folder:
        for child in CHILDREN:
            command = [sys.executable, "-m", "benchmarks.coreml.big", "--child", child]
            command += ["--folder", folder, "--layers", str(arguments.layers)]
            done = subprocess.run(
                command,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **ONE_THREAD},
            )
            found = json.loads(done.stdout.splitlines()[-1])
            row["steps"] += found.pop("steps")
            row |= found
    document = {
        "command": "python -m benchmarks.coreml.big",
        "cpu": read_cpu().model,
        "threads": 1,
        "versions": {name: version(name) for name in ("torch", "transformers", "coremltools")},
        **row,
    }
    arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def build(layers: int) -> Any:
    """BERT-base with random weights: token ids to hidden states."""
    import torch
    from transformers import BertConfig, BertModel

    torch.set_num_threads(1)
    torch.default_generator.manual_seed(0)
    return BertModel(BertConfig(num_hidden_layers=layers, attn_implementation="sdpa")).eval()


def example() -> Any:
    """Token ids of (1, TOKENS), spread over the vocabulary."""
    import torch

    return torch.arange(TOKENS)[None] * 200 + 999


def plan(folder: Path, layers: int) -> dict[str, Any]:
    """Plan under the pins and save."""
    import torch

    from advisor import advise

    steps: list[Step] = []
    model = build(layers)
    generator = torch.Generator().manual_seed(0)
    batches = [
        torch.randint(1000, 30_000, (1, TOKENS), generator=generator) for _ in range(BATCHES)
    ]
    with step("plan", steps):
        found = advise(
            model,
            target="m2",
            inputs=(example(),),
            calibration=batches,
            pin=PINS,
            schemes=sorted(set(PINS.values())),
            trials=1,
            cache=False,
        )
    found.save(folder / "plan")
    schemes: dict[str, int] = {}
    for layer in found.layers:
        schemes[layer.scheme] = schemes.get(layer.scheme, 0) + 1
    return {
        "parameters": sum(each.numel() for each in model.parameters()),
        "schemes": dict(sorted(schemes.items())),
        "steps": [asdict(each) for each in steps],
    }


def convert(folder: Path, layers: int) -> dict[str, Any]:
    """Write the artifact of the saved plan, without checking it."""
    from advisor.binding import quantized_of
    from advisor.plan import Plan
    from advisor.targets.coreml.emit import write_package
    from advisor.targets.coreml.options import DEFAULTS
    from advisor.targets.manifest import CHECK_FOLDER
    from advisor.targets.signature import describe_inputs
    from advisor.targets.simulation import save_simulation

    steps: list[Step] = []
    model = build(layers)
    with step("load", steps):
        quantized = quantized_of(Plan.load(folder / "plan", model=model))
    out = folder / "artifact"
    out.mkdir()
    with step("convert", steps):
        fixed = write_package(quantized, out, DEFAULTS)
    with step("write the check", steps):
        names = tuple(record.name for record in describe_inputs(fixed.float_graph))
        save_simulation(fixed, names, out / CHECK_FOLDER)
    package = out / "model.mlpackage"
    return {
        "package_bytes": sum(path.stat().st_size for path in package.rglob("*")),
        "steps": [asdict(each) for each in steps],
    }


def verify(folder: Path, layers: int) -> dict[str, Any]:
    """Verify from the folder alone."""
    import torch

    from advisor.targets.coreml import TARGET

    torch.set_num_threads(1)
    steps: list[Step] = []
    with step("verify", steps):
        verified = TARGET.load(folder / "artifact").verify()
    return {
        "ok": verified.ok,
        "executed_by": verified.executed_by,
        "layers_matched": verified.layers_matched,
        "layers_total": verified.layers_total,
        "max_abs_error": verified.max_abs_error,
        "steps": [asdict(each) for each in steps],
    }


CHILDREN: Final = {"plan": plan, "convert": convert, "verify": verify}
"""What runs one after another, each in a process of its own."""


if __name__ == "__main__":
    main()
