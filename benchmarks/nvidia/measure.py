"""Measure what one NVIDIA GPU really does, to hold against its profile in ``profiles/``.

    python benchmarks/nvidia/measure.py --out h100.json

Needs Python 3.12, PyTorch 2.11 or newer built for CUDA, and NumPy; nothing of this package. Takes
about a minute and a half on an H100, and changes no setting of the card. Writes one JSON file:

``card``
    name, compute capability, multiprocessors, bytes of memory and of L2, driver; ``clocks``: SM and
    memory clock in MHz, power in W and temperature in C as nvidia-smi tells them before, under a
    half-precision matrix product, and after; ``versions`` of what measured.
``gemm``
    one row per dtype and size. The product is (m, k) x (k, n), both operands random, the second
    stored so that its columns are contiguous, as a linear layer's weight is. ``tf32`` is float32
    with TF32 on; ``int8`` is torch._int_mm into int32; ``float8_e4m3`` is torch._scaled_mm with one
    scale per tensor into bfloat16. ``ops_per_s`` counts 2 m n k. ``bytes_per_s`` counts both
    operands and the result once. A product of few rows (m up to 32) is a matrix-vector product:
    compare its bytes with the memory's, not its operations with the peak.
``memory``
    ``copy`` counts bytes read and written, ``read`` (a sum) and ``write`` (a fill) theirs. The
    smallest size stays in L2, the largest ones do not.
``launch``
    ``graph_s``: kernel start to kernel start inside a captured graph, from 1000 additions of one
    number. ``eager_s``: the same launched one by one from Python. ``replay_s``: one replay of a
    graph of one such kernel, until the host sees it end.
``operators``
    convolutions (channels last, float16), depthwise ones, normalisations, activation functions and
    gathers of rows: ``ops_per_s`` counts 2 per multiply-add, ``bytes_per_s`` every input, weight
    and output once.

Every timing is of a captured graph of several launches between two events, replayed some twenty
times: ``seconds`` is the median per launch, ``low`` and ``high`` the 10th and 90th percentile,
``replays`` and ``launches`` how many there were. Launches take turns among copies of the operands
that do not fit into L2 together, so that a weight comes from memory as it does in a model.
``cached`` is true where even so everything fits. What cannot be measured has ``problem`` instead.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

Launch = Callable[[], object]

SQUARE = (512, 1024, 2048, 4096, 8192)
SHAPES = (
    # (m, n, k): rows, outputs, inputs
    *((size, size, size) for size in SQUARE),
    (128, 768, 768),  # one short sentence through a small encoder
    (1024, 768, 768),
    (1024, 3072, 768),
    (4096, 4096, 1024),
    (1, 4096, 4096),  # one token of a language model
    (1, 14336, 4096),
    (8, 4096, 4096),
    (32, 4096, 4096),
    (32, 14336, 4096),
)
DTYPES = ("float32", "tf32", "float16", "bfloat16", "int8", "float8_e4m3")
REPLAYS = 20
REPLAY_S = 4e-3
MOST_LAUNCHES = 400
LEAST_INT8_ROWS = 17
"""torch._int_mm takes no fewer."""


def time_launches(launches: list[Launch], moved_bytes: int) -> dict[str, Any]:
    """Median and spread of one launch, in seconds. launches: the same on different operands."""
    for launch in launches:
        launch()
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    launches[0]()
    end.record()
    torch.cuda.synchronize()
    once_s = max(start.elapsed_time(end) * 1e-3, 2e-6)
    count = int(min(max(REPLAY_S / once_s, 1), MOST_LAUNCHES))
    count = -(-count // len(launches)) * len(launches)  # every copy as often as the others
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(count):
            launches[index % len(launches)]()
    graph.replay()
    torch.cuda.synchronize()
    times = np.empty(REPLAYS)
    for index in range(REPLAYS):
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times[index] = start.elapsed_time(end) * 1e-3 / count
    low, median, high = (float(np.percentile(times, q)) for q in (10, 50, 90))
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return {
        "seconds": median,
        "low": low,
        "high": high,
        "replays": REPLAYS,
        "launches": count,
        "cached": moved_bytes * len(launches) <= cache,
    }


def copies_for(moved_bytes: int) -> int:
    """How many sets of operands together are four times the L2 cache, 64 at the most."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return int(min(max(-(-4 * cache // max(moved_bytes, 1)), 1), 64))


def draw(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """Random numbers: a card is faster on zeros."""
    if dtype == "int8":
        return torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda")
    real = torch.randn(shape, device="cuda")
    names = {"tf32": torch.float32, "float8_e4m3": torch.float8_e4m3fn}
    return real.to(names.get(dtype) or getattr(torch, dtype))


def product(dtype: str, m: int, n: int, k: int) -> tuple[Launch, int]:
    """One matrix product on operands of its own, and the bytes it must move."""
    a, b = draw((m, k), dtype), draw((n, k), dtype).t()
    operand_bytes = a.nbytes + b.nbytes
    if dtype == "int8":
        return (lambda: torch._int_mm(a, b)), operand_bytes + 4 * m * n
    if dtype == "float8_e4m3":
        one = torch.ones((), device="cuda")

        def scaled() -> object:
            return torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

        return scaled, operand_bytes + 2 * m * n
    return (lambda: torch.mm(a, b)), operand_bytes + a.element_size() * m * n


def measure_gemm() -> Iterator[dict[str, Any]]:
    """Every dtype at every size."""
    for dtype in DTYPES:
        torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
        for m, n, k in SHAPES:
            row: dict[str, Any] = {"dtype": dtype, "m": m, "n": n, "k": k}
            if dtype == "int8" and m < LEAST_INT8_ROWS:
                yield row | {"problem": f"torch._int_mm takes {LEAST_INT8_ROWS} rows or more"}
                continue
            ops = 2 * m * n * k
            yield row | measured(lambda m=m, n=n, k=k, d=dtype: product(d, m, n, k), ops)
    torch.backends.cuda.matmul.allow_tf32 = False


def measured(make: Callable[[], tuple[Launch, int]], ops: int) -> dict[str, Any]:
    """Time what ``make`` makes; what it cannot do is a ``problem``."""
    try:
        launch, moved = make()
        launches = [launch, *(make()[0] for _ in range(copies_for(moved) - 1))]
        timing = time_launches(launches, moved)
    except (RuntimeError, ValueError) as error:
        torch.cuda.synchronize()
        return {"problem": str(error).strip().splitlines()[0]}
    finally:
        torch.cuda.empty_cache()
    seconds = timing["seconds"]
    rates: dict[str, Any] = {"moved_bytes": moved, "bytes_per_s": moved / seconds}
    return timing | rates | ({"ops_per_s": ops / seconds} if ops else {})


def measure_memory() -> Iterator[dict[str, Any]]:
    """Copy, read and write at sizes inside and outside of L2."""
    for size in (2**23, 2**27, 2**30, 2**32):
        for kind in ("copy", "read", "write"):
            yield {"kind": kind, "size_bytes": size} | measured_stream(kind, size)
            torch.cuda.empty_cache()


def measured_stream(kind: str, size: int) -> dict[str, Any]:
    """One buffer again and again: small ones stay in L2, which is what they are for."""
    source = torch.randn(size // 4, device="cuda")
    target = torch.empty_like(source) if kind == "copy" else source
    launches: dict[str, Launch] = {
        "copy": lambda: target.copy_(source),
        "read": source.sum,
        "write": lambda: target.fill_(1.0),
    }
    moved = size * (2 if kind == "copy" else 1)
    timing = time_launches([launches[kind]], moved)
    return timing | {"moved_bytes": moved, "bytes_per_s": moved / timing["seconds"]}


def measure_launch() -> dict[str, Any]:
    """What a kernel costs that does nothing."""
    x = torch.zeros(1, device="cuda")
    kernels, repeats = 1000, 30

    def many() -> None:
        for _ in range(kernels):
            x.add_(1.0)

    many()
    graph, single = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        many()
    with torch.cuda.graph(single):
        x.add_(1.0)
    per_kernel = {"graph_s": graph.replay, "eager_s": many, "replay_s": single.replay}
    found: dict[str, Any] = {}
    for name, call in per_kernel.items():
        count = 1 if name == "replay_s" else kernels
        times = np.empty(repeats)
        call()
        for index in range(repeats):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            call()
            torch.cuda.synchronize()
            times[index] = (time.perf_counter() - begin) / count
        low, median, high = (float(np.percentile(times, q)) for q in (10, 50, 90))
        found[name] = {"seconds": median, "low": low, "high": high, "repeats": repeats}
    return found


def convolution(
    batch: int, channels: int, outputs: int, size: int, kernel: int, groups: int
) -> tuple[Callable[[], tuple[Launch, int]], int]:
    """A convolution that keeps the image's size, and its operations."""

    def make() -> tuple[Launch, int]:
        last = torch.channels_last
        x = draw((batch, channels, size, size), "float16").contiguous(memory_format=last)
        weight = draw((outputs, channels // groups, kernel, kernel), "float16")
        weight = weight.contiguous(memory_format=last)
        moved = x.nbytes + weight.nbytes + 2 * batch * outputs * size * size
        conv = torch.nn.functional.conv2d
        return (lambda: conv(x, weight, padding=kernel // 2, groups=groups)), moved

    return make, 2 * batch * outputs * size * size * (channels // groups) * kernel * kernel


def rowwise(kind: str, rows: int, width: int) -> tuple[Callable[[], tuple[Launch, int]], int]:
    """An operator without a product on float16 rows; its operations count as none."""

    def make() -> tuple[Launch, int]:
        x, y = draw((rows, width), "float16"), draw((rows, width), "float16")
        functional = torch.nn.functional
        launches: dict[str, Launch] = {
            "add": lambda: torch.add(x, y),
            "gelu": lambda: functional.gelu(x),
            "softmax": lambda: torch.softmax(x, -1),
            "layer_norm": lambda: functional.layer_norm(x, (width,)),
            "to_float32": x.float,
        }
        moved = {"add": 3, "to_float32": 3}.get(kind, 2) * x.nbytes
        return launches[kind], moved

    return make, 0


def gather(rows: int, width: int, count: int) -> tuple[Callable[[], tuple[Launch, int]], int]:
    """Rows of a float16 table at random places."""

    def make() -> tuple[Launch, int]:
        table = draw((rows, width), "float16")
        ids = torch.randint(0, rows, (count,), device="cuda")
        moved = 2 * count * width * 2 + ids.nbytes
        return (lambda: torch.nn.functional.embedding(ids, table)), moved

    return make, 0


def measure_operators() -> Iterator[dict[str, Any]]:
    """What is in a network besides matrix products."""
    torch.backends.cudnn.benchmark = True
    convolutions = {
        "conv 3x3 64": (32, 64, 64, 56, 3, 1),
        "conv 3x3 256": (32, 256, 256, 14, 3, 1),
        "conv 1x1 256": (32, 256, 256, 28, 1, 1),
        "conv 7x7 3": (32, 3, 64, 224, 7, 1),
        "conv 3x3 256, one image": (1, 256, 256, 14, 3, 1),
        "depthwise 3x3 192": (32, 192, 192, 28, 3, 192),
        "depthwise 5x5 384": (32, 384, 384, 14, 5, 384),
    }
    cases = {name: convolution(*sizes) for name, sizes in convolutions.items()}
    for kind in ("add", "gelu", "softmax", "layer_norm", "to_float32"):
        cases[f"{kind} 16384x1024"] = rowwise(kind, 16384, 1024)
    cases["embedding 50000x1024, 8192 rows"] = gather(50_000, 1024, 8192)
    for name, (make, ops) in cases.items():
        yield {"name": name} | measured(make, ops)


def read_clocks() -> dict[str, float | str]:
    """What nvidia-smi says now; nothing is set."""
    fields = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw")
    fields += ("power.limit", "temperature.gpu", "utilization.gpu")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {"problem": str(error)}
    values = [part.strip() for part in done.stdout.splitlines()[0].split(",")]
    numbers: dict[str, float | str] = {}
    for name, value in zip(fields, values, strict=True):
        try:
            numbers[name] = float(value)
        except ValueError:  # "[N/A]"
            numbers[name] = value
    return numbers


def read_busy_clocks() -> dict[str, float | str]:
    """The same in the middle of a few seconds of half-precision products.

    The driver takes about a thousand launches ahead, so the loop ends with that many to go.
    """
    a, b = draw((8192, 8192), "float16"), draw((8192, 8192), "float16")
    for _ in range(2500):
        torch.mm(a, b)
    found = read_clocks()
    torch.cuda.synchronize()
    return found


def describe_card() -> dict[str, Any]:
    """Name, sizes and driver."""
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        version = driver.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        version = f"not told ({error})"
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "driver": version,
    }


def main() -> None:
    """Measure everything and write it."""
    parser = argparse.ArgumentParser(description="Measure one NVIDIA GPU")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    out: Path = parser.parse_args().out
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: run this where PyTorch sees one")
    torch.manual_seed(0)
    begin = time.perf_counter()
    idle = read_clocks()
    result: dict[str, Any] = {
        "card": describe_card(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "numpy": np.__version__,
        },
    }
    parts: dict[str, Callable[[], Any]] = {
        "launch": measure_launch,
        "memory": lambda: list(measure_memory()),
        "gemm": lambda: list(measure_gemm()),
        "operators": lambda: list(measure_operators()),
    }
    took: dict[str, float] = {}
    for name, part in parts.items():
        started = time.perf_counter()
        result[name] = part()
        took[name] = round(time.perf_counter() - started, 1)
        out.write_text(json.dumps(result, indent=1) + "\n")  # what is there survives a time limit
        print(f"{name}: {took[name]} s", flush=True)
    result["clocks"] = {"idle": idle, "busy": read_busy_clocks(), "after": read_clocks()}
    result["took_s"] = took | {"all": round(time.perf_counter() - begin, 1)}
    out.write_text(json.dumps(result, indent=1) + "\n")
    summarise(result)


def summarise(result: dict[str, Any]) -> None:
    """A few lines for whoever waits."""
    best: dict[str, float] = {}
    for row in result["gemm"]:
        best[row["dtype"]] = max(best.get(row["dtype"], 0.0), row.get("ops_per_s", 0.0))
    print(result["card"]["name"], result["took_s"])
    for dtype, rate in best.items():
        print(f"  best {dtype}: {rate / 1e12:.1f} Tops/s")
    for row in result["memory"]:
        print(f"  {row['kind']} {row['size_bytes']}: {row['bytes_per_s'] / 1e9:.0f} GB/s")
    for name, row in result["launch"].items():
        print(f"  {name}: {row['seconds'] * 1e6:.2f} us")
    problems = [row for part in ("gemm", "operators") for row in result[part] if "problem" in row]
    for row in problems:
        print("  problem:", {key: row[key] for key in row if key != "moved_bytes"})


if __name__ == "__main__":
    main()
