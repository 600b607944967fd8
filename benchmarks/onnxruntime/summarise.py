"""Check the claims on the committed results and write README.md.

python -m benchmarks.onnxruntime.summarise [--results FOLDER] [--out README.md]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from advisor.atomic import write_text
from benchmarks.claims import NOISE
from benchmarks.models import case_names
from benchmarks.onnxruntime.claims import check_claims
from benchmarks.page import claims, failures, load_results, machine, read_result, table, variants

HERE: Final = Path(__file__).parent
PREDICTION: Final = "predict.json"
SATURATION: Final = "saturation.json"
INTRODUCTION: Final = """# ONNX Runtime: plans against float32 and its own quantizers

This page is written by `summarise.py` from the JSON files in `results/`, claims that do not hold
included. To make the numbers again (they take about half an hour on two otherwise idle cores; a run
that was stopped goes on where it was):

```sh
pip install "quantadvisor[onnxruntime,hf,examples]"
python -m benchmarks.onnxruntime.compare
python -m benchmarks.onnxruntime.predict
python -m benchmarks.onnxruntime.summarise
```

Two processors were measured: one with VNNI ([README.md](README.md)) and, later, one with AVX2 alone
([avx2.md](avx2.md), from `results/avx2`, by `--out` and `--results`), which multiplies 8-bit
integers little faster than floats. With VNNI, two threads were timed before timing waited for
threads that spin (ADR 0041), and float layers between integers were not fenced yet, so that ONNX
Runtime rounded some of them (ADR 0042). With AVX2, two threads of small networks differ by a fifth
from one turn to the next on the machine that was there, whichever processor each thread is bound
to: what their intervals cannot tell apart is said so.

- **Latency** is relative to the faster of two float32 files (PyTorch's own export at fixed shapes,
  and ours): 2x is twice as fast. All files of a table ran in one interleaved run, in another order
  each round (with VNNI: forwards and backwards by turns). The ratio is of medians without what
  slowed whole rounds (with VNNI: the median of each round's own), its interval at 95 %.
- Our files have a dynamic batch, which is fixed when a session is opened
  (`add_free_dimension_override_by_name`), since the other files have it fixed inside. Our files are
  opened as `session.json` says, the others by default. That differs without VNNI alone, where
  int8 sums of the others saturate: faster and less right, as their users would have them.
- **Divergence** is that of ONNX Runtime's outputs from the float32 file's on evaluation data that
  neither trained nor calibrated anything: KL in nats per prediction for logits, squared error over
  the power for embeddings.
- **Bytes** are those of the files, graph included.
- `static`, `dynamic`: `onnxruntime.quantization`'s `quantize_static` and `quantize_dynamic` with
  their defaults after `quant_pre_process` (without its symbolic shape inference where that fails,
  as on MiniLM), calibrated on the same data as the plans. "layers only" quantizes Conv, Gather,
  Gemm and MatMul instead of every operator that can be, attention masks included. `matmul`:
  `MatMulNBitsQuantizer` with its defaults; "int8 products" is accuracy level 4 of the same kernel.
- Rows named like `latency (threads=1)` are what `advise` answered for that objective, budget and
  number of threads. `uniform` rows are one scheme wherever a layer can take it.
- Models without a quality column have random weights: they show speed and bytes, no accuracy.
"""


EXACT_SUMS: Final = """\
An x86 processor without VNNI adds products of uint8 and int8 in pairs, in 16 bits, and saturates.
Plans are shipped with the setting that makes sums exact, which other tools' users have to know of.
Here every int8 file is opened both ways in one interleaved run (`saturation.py`): how many times as
fast as float32, and the divergence. In the claims above the others run as their users have them.
"""


def render(
    results: Sequence[Mapping[str, Any]],
    prediction: Mapping[str, Any] | None,
    saturation: Mapping[str, Any] | None = None,
) -> str:
    """The page."""
    verdicts = [verdict for result in results for verdict in check_claims(result)]
    parts = [
        INTRODUCTION,
        machine(results, ("onnxruntime", "torch")),
        "## Claims\n",
        claims(verdicts),
    ]
    if prediction is not None:
        parts += ["## Predicted latency\n", _prediction(prediction)]
    if saturation is not None:
        parts += ["## Exact sums\n", EXACT_SUMS, _saturation(saturation)]
    for result in results:
        for threads in result["timings"]:
            plural = "" if threads == "1" else "s"
            parts.append(f"## {result['case']}, {threads} thread{plural}\n")
            parts.append(variants(result, threads))
        parts += failures(result)
    return "\n".join(parts)


def _prediction(prediction: Mapping[str, Any]) -> str:
    rows = [
        [
            each["case"],
            str(each["threads"]),
            str(len(each["plans"])),
            f"{each['median_error']:.1%}",
            f"{each['p90_error']:.1%}",
            f"{each['spearman']:.3f}",
        ]
        for each in prediction["settings"]
    ]
    total = prediction["overall"]
    count = sum(len(each["plans"]) for each in prediction["settings"])
    errors = [f"{total['median_error']:.1%}", f"{total['p90_error']:.1%}"]
    rows.append(["all", "", str(count), *errors, f"{total['spearman']:.3f}"])
    heads = ["model", "threads", "random plans", "median error", "p90", "rank correlation"]
    pooled = f"Over all plans at once the rank correlation is {total['pooled_spearman']:.3f}."
    return f"{table(heads, rows)}\n\n{pooled}"


def _saturation(saturation: Mapping[str, Any]) -> str:
    heads = [
        "model",
        "file",
        "speed, exact (threads)",
        "by default",
        "divergence, exact",
        "by default",
    ]
    lines: list[list[str]] = []
    as_fast: list[bool] = []
    for case, found in saturation["cases"].items():
        rows = {row["name"]: row for row in found["rows"]}
        as_fast += [_is_as_fast(found["rows"], timed) for timed in found["timings"].values()]
        for name in (each.removesuffix(", exact") for each in rows if each.endswith(", exact")):
            ways = [rows[f"{name}, {way}"] for way in ("exact", "default")]
            speeds = [_speeds(found["timings"], way) for way in ways]
            losses = ["" if way["failure"] else f"{way['divergence']:.2g}" for way in ways]
            lines.append([case, name, *speeds, *losses])
    said = (
        "With exact sums the faster uniform file of ours is as fast as the fastest other int8 "
        f"file, within 3 %, in {sum(as_fast)} of {len(as_fast)} cases."
    )
    return f"{table(heads, lines)}\n\n{said}\n"


def _is_as_fast(rows: Sequence[Mapping[str, Any]], timed: Mapping[str, Any]) -> bool:
    """Whether, with exact sums, a uniform file of ours is as fast as the fastest other file."""
    exact = [row for row in rows if row["name"].endswith(", exact") and row["name"] in timed]
    ours, other = (
        min(timed[row["name"]]["ratio"] for row in exact if row["origin"] == origin)
        for origin in ("uniform", "peer")
    )
    return bool(ours <= other * NOISE)


def _speeds(timings: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    if row["failure"]:
        return "does not open"
    name = row["name"]
    return ", ".join(f"{1 / timed[name]['ratio']:.2f}x ({n})" for n, timed in timings.items())


def main() -> int:
    """Write the page and print the claims."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE / "README.md")
    arguments = parser.parse_args()
    results = load_results(arguments.results, case_names())
    if not results:
        print(f"no result in {arguments.results}: run compare first", file=sys.stderr)
        return 1
    prediction = read_result(arguments.results / PREDICTION)
    saturation = read_result(arguments.results / SATURATION)
    write_text(arguments.out, render(results, prediction, saturation))
    print(claims([verdict for result in results for verdict in check_claims(result)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
