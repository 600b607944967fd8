"""Measure the Core ML package beside this file on a Mac, one compute unit after another.

    pip install coremltools
    python benchmark.py                        # writes benchmark.json beside the package
    python benchmark.py --units cpu npu --seconds 5

`advisor profiles correct benchmark.json` corrects the device's profile by the result. Needs nothing
but Python, numpy and coremltools, and Pillow for a package that takes pictures. Written after the
documentation of coremltools: nobody has run it on a Mac for the project it comes from, which has
none. A compute unit is what Core ML may use; it decides by itself which operators run where, and
always may use the CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
PACKAGE = "model.mlpackage"
SCHEMA = 2
UNITS = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "npu": "CPU_AND_NE", "all": "ALL"}
WARM_UP = 10
LEAST_RUNS = 20

Feeds = Mapping[str, Any]
Predict = Callable[[Feeds], object]


def open_model(package: Path, unit: str) -> Predict:
    """The package loaded for a compute unit (a key of UNITS), as a function of its inputs."""
    ct: Any = import_module("coremltools")
    model = ct.models.MLModel(str(package), compute_units=getattr(ct.ComputeUnit, UNITS[unit]))
    return lambda feeds: model.predict(dict(feeds))


def make_inputs(package: Path) -> dict[str, Any]:
    """Normal numbers from a seed for every float32 input, zeros for every int32 one, and gray
    noise for every picture."""
    ct: Any = import_module("coremltools")
    spec = ct.models.MLModel(str(package), skip_model_load=True).get_spec()
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {}
    for given in spec.description.input:
        if given.type.WhichOneof("Type") == "imageType":
            held = given.type.imageType
            pixels = rng.integers(0, 256, (held.height, held.width), dtype=np.uint8)
            picture: Any = import_module("PIL.Image").fromarray(pixels)
            is_gray = held.colorSpace == held.ColorSpace.Value("GRAYSCALE")
            made[given.name] = picture if is_gray else picture.convert("RGB")
            continue
        array = given.type.multiArrayType
        shape = tuple(int(size) for size in array.shape)
        is_float = array.dataType == array.ArrayDataType.Value("FLOAT32")
        made[given.name] = (
            rng.standard_normal(shape, dtype=np.float32) if is_float else np.zeros(shape, np.int32)
        )
    return made


def digest(package: Path) -> str:
    """SHA-256 over the model and its weights; Manifest.json has names that are new each time."""
    found = hashlib.sha256()
    for path in sorted((package / "Data").rglob("*")):
        if path.is_file():
            found.update(path.relative_to(package).as_posix().encode())
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def chip() -> str:
    """What macOS calls the processor, such as "Apple M2"; empty elsewhere."""
    if sys.platform != "darwin":
        return ""
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


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
    if opener is open_model and sys.platform != "darwin":
        raise SystemExit("Core ML runs on macOS only; copy this folder to a Mac and run it there")
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
        "schema": SCHEMA,
        "package": asked.package.name,
        "package_sha256": digest(asked.package),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "chip": chip(),
        "machine": platform.machine(),
        "system": f"macOS {platform.mac_ver()[0]}" if sys.platform == "darwin" else sys.platform,
        "coremltools": str(import_module("coremltools").__version__),
        "inputs": {name: list(getattr(fed, "shape", fed.size)) for name, fed in feeds.items()},
        "units": units,
        "failed": failed,
    }
    asked.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
