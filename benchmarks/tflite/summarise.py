"""Check the claims on the committed results and write README.md.

python -m benchmarks.tflite.summarise [--results FOLDER] [--out README.md]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from advisor.atomic import write_text
from benchmarks.page import claims, failures, load_results, machine, variants
from benchmarks.tflite.claims import check_claims
from benchmarks.tflite.compare import CASES

HERE: Final = Path(__file__).parent
PACKAGES: Final = ("ai-edge-litert", "litert-torch", "ai-edge-quantizer", "torch")
INTRODUCTION: Final = """# LiteRT: plans against uniform precision and ai-edge-quantizer's recipes

This page is written by `summarise.py` from the JSON files in `results/`, claims that do not hold
included. To make the numbers again (they take about half an hour on two otherwise idle cores; a run
that was stopped goes on where it was):

```sh
pip install "quantadvisor[tflite,hf,examples]"
python -m benchmarks.tflite.compare
python -m benchmarks.tflite.summarise
```

- **Latency** is relative to the faster of two float32 files (litert-torch's own conversion, and
  ours): 2x is twice as fast. All files of a table ran in one interleaved run with XNNPACK, by turns
  forwards and backwards; the interval is that of the median of the ratios, at 95 %.
- **Divergence** is that of LiteRT's outputs from litert-torch's float32 file's on evaluation data
  that neither trained nor calibrated anything: KL in nats per prediction for logits, squared error
  over the power for embeddings.
- **Bytes** are those of the files, graph included.
- **Partitions**: parts that XNNPACK runs, and how many operators it leaves to LiteRT's own kernels.
- Rows named like `static_wi8_ai8` are ai-edge-quantizer's stock recipes as they are, calibrated on
  the same data as the plans; `uniform` rows are one scheme wherever a layer can take it, the others
  in float32. int4 is `w4a8-dynamic` on linear layers, and `w4`, whose layers XNNPACK leaves out.
- Rows named like `latency (threads=1)` are what `advise` answered for that objective, budget and
  number of threads, each picked by a race of whole plans where the objective asks for speed.
- Models without a quality column have random weights: they show speed and bytes, no accuracy.
"""


def render(results: Sequence[Mapping[str, Any]]) -> str:
    """The page."""
    verdicts = [verdict for result in results for verdict in check_claims(result)]
    parts = [INTRODUCTION, machine(results, PACKAGES), "## Claims\n", claims(verdicts)]
    for result in results:
        for threads in result["timings"]:
            plural = "" if threads == "1" else "s"
            parts.append(f"## {result['case']}, {threads} thread{plural}\n")
            parts.append(variants(result, threads))
        parts += failures(result)
    return "\n".join(parts)


def main() -> int:
    """Write the page and print the claims."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE / "README.md")
    arguments = parser.parse_args()
    results = load_results(arguments.results, CASES)
    if not results:
        print(f"no result in {arguments.results}: run compare first", file=sys.stderr)
        return 1
    write_text(arguments.out, render(results))
    print(claims([verdict for result in results for verdict in check_claims(result)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
