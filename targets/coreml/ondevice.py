"""Measure the Core ML package beside this file on a Mac, one compute unit after another.

    pip install coremltools
    python benchmark.py                        # writes benchmark.json beside the package
    python benchmark.py --units cpu npu --seconds 5

Needs nothing but Python, numpy and coremltools. Written after the documentation of coremltools:
nobody has run it on a Mac for the project it comes from, which has none. A compute unit is what
Core ML may use; it decides by itself which operators run where, and always may use the CPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
PACKAGE = "model.mlpackage"
UNITS = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "npu": "CPU_AND_NE", "all": "ALL"}
WARM_UP = 10
LEAST_RUNS = 20

Feeds = Mapping[str, np.ndarray[Any, Any]]
Predict = Callable[[Feeds], object]


def open_model(package: Path, unit: str) -> Predict:
    """The package loaded for a compute unit (a key of UNITS), as a function of its inputs."""
    if sys.platform != "darwin":
        raise SystemExit("Core ML runs on macOS only; copy this folder to a Mac and run it there")
    ct: Any = import_module("coremltools")
    model = ct.models.MLModel(str(package), compute_units=getattr(ct.ComputeUnit, UNITS[unit]))
    return lambda feeds: model.predict(dict(feeds))


def make_inputs(package: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Normal numbers from a seed for every float32 input, zeros for every int32 one."""
    ct: Any = import_module("coremltools")
    spec = ct.models.MLModel(str(package), skip_model_load=True).get_spec()
    rng = np.random.default_rng(0)
    made: dict[str, np.ndarray[Any, Any]] = {}
    for given in spec.description.input:
        array = given.type.multiArrayType
        shape = tuple(int(size) for size in array.shape)
        is_float = array.dataType == array.ArrayDataType.Value("FLOAT32")
        made[given.name] = (
            rng.standard_normal(shape, dtype=np.float32) if is_float else np.zeros(shape, np.int32)
        )
    return made


def measure(predict: Predict, feeds: Feeds, seconds: float) -> dict[str, float]:
    """Seconds per call, over at least ``seconds`` and ``LEAST_RUNS`` calls after a warm-up."""
    for _ in range(WARM_UP):
        predict(feeds)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < LEAST_RUNS or time.perf_counter() - began < seconds:
        before = time.perf_counter()
        predict(feeds)
        times.append(time.perf_counter() - before)
    return {
        "median_s": statistics.median(times),
        "fastest_s": min(times),
        "slowest_s": max(times),
        "runs": len(times),
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure a Core ML package on this Mac.")
    parser.add_argument("--package", type=Path, default=HERE / PACKAGE, help="the .mlpackage")
    parser.add_argument("--out", type=Path, default=HERE / "benchmark.json", help="file to write")
    parser.add_argument(
        "--units", nargs="+", choices=list(UNITS), default=list(UNITS), help="compute units"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="per compute unit")
    return parser.parse_args(arguments)


def main(
    arguments: Sequence[str] | None = None,
    opener: Callable[[Path, str], Predict] = open_model,
) -> int:
    """Measure and write the results. opener: what loads the package."""
    asked = parse(arguments)
    if not asked.package.exists():
        sys.stderr.write(f"{asked.package} does not exist; name the .mlpackage with --package\n")
        return 2
    feeds = make_inputs(asked.package)
    units: dict[str, dict[str, float]] = {}
    failed: dict[str, str] = {}
    for unit in asked.units:
        began = time.perf_counter()
        try:
            predict = opener(asked.package, unit)
            loaded_s = time.perf_counter() - began
            units[unit] = {"load_s": loaded_s, **measure(predict, feeds, asked.seconds)}
        except (RuntimeError, ValueError, OSError) as error:  # the other units are measured still
            failed[unit] = f"{type(error).__name__}: {error}"
            sys.stderr.write(f"{unit}: {failed[unit]}\n")
            continue
        sys.stdout.write(f"{unit}: {units[unit]['median_s'] * 1e3:.3f} ms\n")
    result = {
        "schema": 1,
        "package": asked.package.name,
        "machine": platform.machine(),
        "processor": platform.processor(),
        "system": f"macOS {platform.mac_ver()[0]}" if sys.platform == "darwin" else sys.platform,
        "coremltools": str(import_module("coremltools").__version__),
        "inputs": {name: list(array.shape) for name, array in feeds.items()},
        "units": units,
        "failed": failed,
    }
    asked.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
