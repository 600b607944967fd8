"""What exact int8 sums cost on an x86 processor without VNNI, and what inexact ones lose.

    python -m benchmarks.onnxruntime.saturation CASE [...] [--threads 1 2] [--seconds 20]

Such a processor adds products of uint8 and int8 in pairs, in 16 bits, and saturates. Plans ship
with the setting that prevents it (``session.json``); files of ONNX Runtime's own quantizers are
opened without it by whoever does not know of it. Here the int8 files that ``compare`` has left in
``--work`` are opened both ways and timed in one interleaved run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from advisor.atomic import write_text
from advisor.targets.onnxruntime.manifest import SESSION_ENTRIES
from advisor.targets.onnxruntime.onnxfile import load_model, sizes_of
from benchmarks.command import say, slug
from benchmarks.measure import feed_of
from benchmarks.models import Case, make_case
from benchmarks.onnxruntime.compare import WORK
from benchmarks.onnxruntime.measure import OnnxVariant
from benchmarks.onnxruntime.peers import METHODS
from benchmarks.rows import FLOAT, Row, describe_machine, judge_accuracy, time_rows

RESULTS: Final = Path(__file__).parent / "results" / "avx2" / "saturation.json"
PEERS: Final = tuple(name for name in METHODS if name.startswith(("static", "dynamic")))
SCHEMES: Final = ("w8a8", "w8a8-dynamic")
WAYS: Final[Mapping[str, Mapping[str, str]]] = {"exact": SESSION_ENTRIES, "default": {}}


def main() -> int:
    """Measure the cases, those of an earlier run kept; write one JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="+", metavar="CASE")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    if arguments.out.exists():
        found = json.loads(arguments.out.read_text(encoding="utf-8"))["cases"]
    for name in arguments.cases:
        folder = arguments.work / name
        found[name] = measure(make_case(name), folder, arguments.threads, arguments.seconds, None)
    result = {"machine": describe_machine(), "cases": found}
    write_text(arguments.out, json.dumps(result, indent=1) + "\n")
    return 0


def measure(
    case: Case, folder: Path, threads: Sequence[int], seconds: float, samples: int | None
) -> dict[str, Any]:
    """The rows of one case, and their timings by number of threads. samples: see ``compare``."""
    rows = judge_accuracy(case, list(_rows(case, folder)), samples)
    timings: dict[str, Any] = {}
    for count in threads:
        say(case, f"timing, threads={count}")
        timings[str(count)] = time_rows(case, rows, count, seconds)
    return {"rows": [row.record() for row in rows], "timings": timings}


def _rows(case: Case, folder: Path) -> Iterator[Row]:
    """The float file, then every int8 file opened in each way; some files open in one way only."""
    source = folder / "float.onnx"
    if not source.exists():
        raise SystemExit(f"{source} is missing: run benchmarks.onnxruntime.compare {case.name}")
    yield Row(name=FLOAT, origin="float", variant=OnnxVariant(name=FLOAT, path=source))
    files = {
        **{name: ("peer", folder / "peers" / f"{slug(name)}.onnx") for name in PEERS},
        **{f"uniform {name}": ("uniform", folder / "uniform" / f"{name}.onnx") for name in SCHEMES},
    }
    for file, (origin, path) in files.items():
        if path.exists():
            sizes = sizes_of(load_model(path), feed_of(case.example))
            for way, entries in WAYS.items():
                name = f"{file}, {way}"
                variant = OnnxVariant(name=name, path=path, entries=entries, dimensions=sizes)
                yield Row(name=name, origin=origin, variant=variant).checked(case)


if __name__ == "__main__":
    sys.exit(main())
