"""What an NVIDIA GPU's matrix units really compute, held against exact arithmetic.

    python benchmarks/nvidia/arithmetic.py --out h100.json

Needs Python 3.12, PyTorch 2.11 or newer built for CUDA, and NumPy; nothing of this package. Takes
a few seconds. The simulation of a plan multiplies rounded numbers and adds in float32; this says
how far the card's own products are from that. Writes one JSON file:

``rounding``
    every float16 number and a million random float32 ones, made float8_e4m3 and bfloat16 on the
    card and on the processor: ``differ`` counts those that are not the same bits.
``products``
    one row per dtype and depth k: 512 x k times k x 512, operands rounded to that dtype, against
    the same product of the same rounded operands in float64. ``relative`` is the Frobenius norm of
    the difference over that of the product; ``wrong`` counts integers that differ. The output is
    float32 (int32 for int8) where the operator gives one, else its rounding is in the number:
    ``output`` names it. ``fast`` is use_fast_accum of torch._scaled_mm, which lets the card add
    float8 products in fewer bits.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

DEPTHS = (64, 256, 1024, 4096, 16384)
SIDE = 512


def check_rounding() -> Iterator[dict[str, Any]]:
    """Conversions on the card against those on the processor."""
    halves = torch.from_numpy(np.arange(2**16, dtype=np.uint16).view(np.float16)).float()
    every = halves[torch.isfinite(halves)]
    drawn = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)) * 10
    for source, x in (("every float16", every), ("random float32", drawn)):
        for dtype, bits in ((torch.float8_e4m3fn, torch.uint8), (torch.bfloat16, torch.int16)):
            limit = torch.finfo(dtype).max
            inside = x[x.abs() <= limit]
            here, there = inside.to(dtype).view(bits), inside.cuda().to(dtype).cpu().view(bits)
            yield {
                "from": source,
                "to": str(dtype).removeprefix("torch."),
                "count": inside.numel(),
                "differ": int((here != there).sum()),
            }


def check_products() -> Iterator[dict[str, Any]]:
    """Products on the card against float64 on the card."""
    generator = torch.Generator().manual_seed(0)
    for depth in DEPTHS:
        a = torch.randn(SIDE, depth, generator=generator)
        b = torch.randn(SIDE, depth, generator=generator)
        for dtype in ("float32", "tf32", "float16", "bfloat16"):
            torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
            narrow = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
            x, y = a.cuda().to(narrow), b.cuda().to(narrow)
            found = torch.mm(x, y.t())
            yield described(dtype, depth, found, x, y)
        x, y = (integers(each).cuda() for each in (a, b))
        found = torch._int_mm(x, y.t())
        exact = x.double() @ y.double().t()
        wrong = int((found.double() != exact).sum())
        yield {"dtype": "int8", "k": depth, "output": "int32", "wrong": wrong}
        x, y = (each.cuda().to(torch.float8_e4m3fn) for each in (a, b))
        one = torch.ones((), device="cuda")
        for fast in (False, True):
            for output in (torch.float32, torch.bfloat16):
                try:
                    found = torch._scaled_mm(
                        x, y.t(), scale_a=one, scale_b=one, out_dtype=output, use_fast_accum=fast
                    )
                except RuntimeError as error:
                    problem = str(error).splitlines()[0]
                    yield {"dtype": "float8_e4m3", "k": depth, "fast": fast, "problem": problem}
                    continue
                yield described("float8_e4m3", depth, found, x, y) | {"fast": fast}


def integers(x: torch.Tensor) -> torch.Tensor:
    """Symmetric int8 with the largest magnitude at 127."""
    return torch.round(x / x.abs().max() * 127).to(torch.int8)


def described(
    dtype: str, depth: int, found: torch.Tensor, x: torch.Tensor, y: torch.Tensor
) -> dict[str, Any]:
    """One row: how far ``found`` is from the exact product of ``x`` and ``y`` transposed."""
    exact = x.double() @ y.double().t()
    distance = float((found.double() - exact).norm() / exact.norm())
    output = str(found.dtype).removeprefix("torch.")
    return {"dtype": dtype, "k": depth, "output": output, "relative": distance}


def main() -> None:
    """Compare everything and write it."""
    parser = argparse.ArgumentParser(description="Compare one NVIDIA GPU with exact arithmetic")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    out: Path = parser.parse_args().out
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: run this where PyTorch sees one")
    result = {
        "card": torch.cuda.get_device_properties(0).name,
        "torch": torch.__version__,
        "rounding": list(check_rounding()),
        "products": list(check_products()),
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    for row in (*result["rounding"], *result["products"]):
        print(row)


if __name__ == "__main__":
    main()
