"""A model whose files pass protobuf's 2 GiB: planned, compiled, verified and run.

    python -m benchmarks.onnxruntime.big [--blocks N] [--plans NAME ...] [--out FILE]

A decoder of random weights (2.9 GB of float32 with 12 blocks). Both of its plans write the float
model beside the artifact; "mixed" keeps the blocks in float32, so that its own file passes the
limit too, and "w4a8-dynamic-g32" quantizes everything. Each step's peak is the process's whole
resident size, files of weights that it has mapped included. Needs 11 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from advisor import advise
from advisor.doctor import read_cpu
from advisor.targets.manifest import CHECK_FOLDER
from advisor.targets.onnxruntime import TARGET
from advisor.targets.onnxruntime.benchmark import model_bytes
from advisor.targets.onnxruntime.floatmodel import FLOAT_FILE
from advisor.targets.onnxruntime.manifest import MODEL_FILE, SESSION_ENTRIES
from advisor.targets.onnxruntime.memory import measure_memory
from advisor.targets.onnxruntime.session import runtime_version
from benchmarks.steps import Step, step

RESULTS: Final = Path(__file__).parent / "results"
BLOCKS: Final = 12
WIDTH: Final = 2048
HEADS: Final = 16
VOCABULARY: Final = 32_000
TOKENS: Final = 16
BATCHES: Final = 4
RUNS: Final = 3

PLANS: Final[dict[str, dict[str, str]]] = {
    "w4a8-dynamic-g32": {"op:linear": "w4a8-dynamic-g32", "op:embedding": "w4-g32"},
    "mixed": {"blocks.*": "fp32", "embedding": "w8", "head": "w8a8-dynamic"},
}
"""Scheme by pin of every plan."""


class Block(nn.Module):
    """Causal self-attention and a network of two layers, each after a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.output = (
            nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4)
        )
        self.between = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tensors of (batch, tokens, WIDTH)."""
        y = self.before(x)
        heads = (
            layer(y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        attended = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.output(attended.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.silu(self.up(self.between(x))))


class Decoder(nn.Module):
    """Token ids of (batch, tokens) to logits of (batch, tokens, VOCABULARY)."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(blocks)))
        self.last = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of every next token."""
        logits: torch.Tensor = self.head(self.last(self.blocks(self.embedding(ids))))
        return logits


def main() -> None:
    """Every plan in processes of its own; write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--plans", nargs="+", choices=list(PLANS), default=list(PLANS))
    parser.add_argument("--out", type=Path, default=RESULTS / "big.json")
    parser.add_argument("--child", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        if arguments.child.exists():
            found = verify(arguments.child)
        else:
            found = make(arguments.child, arguments.plans[0], arguments.blocks)
        sys.stdout.write(json.dumps(found) + "\n")
        return
    for name in arguments.plans:
        rows = {} if not arguments.out.exists() else json.loads(arguments.out.read_text())["rows"]
        rows[name] = measure(name, arguments.blocks)
        document = {
            "command": "python -m benchmarks.onnxruntime.big",
            "executed_by": runtime_version(),
            "cpu": read_cpu().model,
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def measure(plan: str, blocks: int) -> dict[str, Any]:
    """Make, check, open and run one plan's files."""
    with tempfile.TemporaryDirectory(prefix="advisor-big-") as folder:
        out = Path(folder) / "artifact"
        command = [sys.executable, "-m", "benchmarks.onnxruntime.big", "--child", str(out)]
        command += ["--plans", plan, "--blocks", str(blocks)]
        row: dict[str, Any] = {"blocks": blocks, "steps": []}
        for _ in (make, verify):  # each in a process of its own
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout)
            row["steps"] += found.pop("steps")
            row |= found
        ids = {"ids": example().numpy()}
        for key, file in (("plan", out / MODEL_FILE), ("float", out / CHECK_FOLDER / FLOAT_FILE)):
            begin = time.perf_counter()
            memory = measure_memory(file, SESSION_ENTRIES, [ids] * RUNS, threads=None)
            row[f"{key}_file"] = {
                "bytes": model_bytes(file),
                "open_and_run_s": time.perf_counter() - begin,
                "memory": None if memory is None else asdict(memory),
            }
    print_row(plan, row)
    return row


def make(out: Path, plan: str, blocks: int) -> dict[str, Any]:
    """Plan and compile, which verifies too; what every step took."""
    steps: list[Step] = []
    with torch.no_grad():
        torch.default_generator.manual_seed(0)
        model = Decoder(blocks).eval()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    with step("plan", steps):
        found = advise(
            model,
            target="intel-vnni",
            runtime="onnxruntime",
            inputs=(example(),),
            calibration=[(torch.randint(VOCABULARY, (1, TOKENS)),) for _ in range(BATCHES)],
            output="logits",
            pin=PLANS[plan],
            trials=1,
            cache=False,
        )
    with step("compile", steps):
        found.compile(out)
    return {"weights_bytes": weights, "steps": [asdict(each) for each in steps]}


def verify(folder: Path) -> dict[str, Any]:
    """Verify again, from the folder alone."""
    steps: list[Step] = []
    with step("verify", steps):
        verified = TARGET.load(folder).verify()
    return {
        "ok": verified.ok,
        "layers_matched": verified.layers_matched,
        "layers_total": verified.layers_total,
        "max_abs_error": verified.max_abs_error,
        "steps": [asdict(each) for each in steps],
    }


def example() -> torch.Tensor:
    """Token ids of (1, TOKENS), spread over the vocabulary."""
    return torch.arange(TOKENS)[None] * (VOCABULARY // TOKENS)


def print_row(plan: str, row: Mapping[str, Any]) -> None:
    """A line per step and file."""
    weights = row["weights_bytes"]
    print(f"{plan}: {weights / 1e9:.2f} GB of float32, ok={row['ok']}")
    for each in row["steps"]:
        print(
            f"  {each['name']:8} {each['seconds']:6.1f} s  peak {each['peak_bytes'] / 1e9:.2f} GB, "
            f"{each['peak_bytes'] / weights:.2f} times the weights"
        )
    for key in ("plan_file", "float_file"):
        file = row[key]
        print(f"  {key}: {file['bytes'] / 2**30:.2f} GiB, memory {file['memory']}", flush=True)


if __name__ == "__main__":
    main()
