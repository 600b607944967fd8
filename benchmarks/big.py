"""A transformer of over 100 million parameters through one runtime: written, verified, weighed.

BERT-base with random weights (109 million parameters), a plan of several schemes, one thread.
Planning, writing and verifying each run in a process of their own, so that each one's memory is its
own. What differs by runtime is a ``Big``; those are in ``big.py`` of ``benchmarks/coreml`` and
``benchmarks/tensorrt``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from advisor.doctor import read_cpu
from benchmarks.steps import Step, step

if TYPE_CHECKING:
    from advisor.passes.graph import QuantizedGraph

LAYERS: Final = 12
TOKENS: Final = 128
BATCHES: Final = 2
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PLAN, ARTIFACT = "plan", "artifact"


@dataclass(frozen=True, slots=True, kw_only=True)
class Big:
    """One runtime's run.

    runtime: its name; ``benchmarks.<runtime>.big`` is the module that is run. profile: what is
    planned for. pins: scheme by pin; what is named last wins. packages: whose versions are
    recorded. write: puts the artifact into an empty folder, each step appended, and returns the
    bytes of what ships. found: what else the verified folder tells.
    """

    runtime: str
    profile: str
    pins: Mapping[str, str]
    packages: tuple[str, ...]
    results: Path
    write: Callable[[QuantizedGraph, Path, list[Step]], int]
    found: Callable[[Path], Mapping[str, Any]] = lambda _: {}

    @property
    def module(self) -> str:
        """What ``python -m`` runs."""
        return f"benchmarks.{self.runtime}.big"


def run(big: Big) -> None:
    """Every step in a process of its own; write the JSON."""
    parser = argparse.ArgumentParser(prog=f"python -m {big.module}")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--out", type=Path, default=big.results)
    parser.add_argument("--folder", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=list(CHILDREN), default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        found = CHILDREN[arguments.child](big, arguments.folder, arguments.layers)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        sys.stdout.write(json.dumps({**found, f"{arguments.child}_process_bytes": most}) + "\n")
        return
    row: dict[str, Any] = {"steps": []}
    with tempfile.TemporaryDirectory(prefix="advisor-big-") as folder:
        for child in CHILDREN:
            command = [sys.executable, "-m", big.module, "--child", child]
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
        "command": f"python -m {big.module}",
        "cpu": read_cpu().model,
        "threads": 1,
        "versions": {name: version(name) for name in big.packages},
        **row,
    }
    arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def build(layers: int) -> Any:
    """BERT-base with random weights: token ids to hidden states."""
    import torch
    from transformers import BertConfig, BertModel

    torch.set_num_threads(1)
    torch.default_generator.manual_seed(0)
    settings: dict[str, Any] = {"num_hidden_layers": layers, "attn_implementation": "sdpa"}
    return BertModel(BertConfig(**settings)).eval()


def example() -> Any:
    """Token ids of (1, TOKENS), spread over the vocabulary."""
    import torch

    return torch.arange(TOKENS)[None] * 200 + 999


def plan(big: Big, folder: Path, layers: int) -> dict[str, Any]:
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
            target=big.profile,
            inputs=(example(),),
            calibration=batches,
            pin=big.pins,
            schemes=sorted(set(big.pins.values())),
            trials=1,
            cache=False,
        )
    found.save(folder / PLAN)
    schemes: dict[str, int] = {}
    for layer in found.layers:
        schemes[layer.scheme] = schemes.get(layer.scheme, 0) + 1
    return {
        "parameters": sum(each.numel() for each in model.parameters()),
        "schemes": dict(sorted(schemes.items())),
        "steps": [asdict(each) for each in steps],
    }


def convert(big: Big, folder: Path, layers: int) -> dict[str, Any]:
    """Write the artifact of the saved plan, without checking it."""
    from advisor.binding import quantized_of
    from advisor.plan import Plan

    steps: list[Step] = []
    model = build(layers)
    with step("load", steps):
        quantized = quantized_of(Plan.load(folder / PLAN, model=model))
    out = folder / ARTIFACT
    out.mkdir()
    size = big.write(quantized, out, steps)
    return {"package_bytes": size, "steps": [asdict(each) for each in steps]}


def verify(big: Big, folder: Path, layers: int) -> dict[str, Any]:
    """Verify from the folder alone."""
    import torch

    from advisor.targets.registry import target_named

    torch.set_num_threads(1)
    steps: list[Step] = []
    with step("verify", steps):
        verified = target_named(big.runtime).load(folder / ARTIFACT).verify()
    return {
        "ok": verified.ok,
        "executed_by": verified.executed_by,
        "layers_matched": verified.layers_matched,
        "layers_total": verified.layers_total,
        "max_abs_error": verified.max_abs_error,
        **big.found(folder / ARTIFACT),
        "steps": [asdict(each) for each in steps],
    }


CHILDREN: Final = {"plan": plan, "convert": convert, "verify": verify}
"""What runs one after another, each in a process of its own."""
