"""How fast ONNX Runtime's kernels are on this machine, from a few models of one operator."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from advisor.profiles.rates import Rates, fit_rates, least_seconds
from advisor.targets.idle import wait_until_idle
from advisor.targets.onnxruntime.session import open_session, require
from advisor.targets.statistics import low_quantile

Array = np.ndarray[Any, Any]

BUDGET_S: Final = 0.15
"""Time to spend on one kernel in each pass."""

LEAST_RUNS: Final = 5
ELEMENTS: Final = 2**23
SMALLER: Final = (2**17, 2**18, 2**19, 2**20, 2**21, 2**22)
"""Elements of arrays that may fit into a cache."""

TINY: Final = 200
TABLE: Final = 30_000
CONVERTED: Final = 4
"""Operations of quantizing an element: multiply, round, add, clip."""

LINEAR: Final = ((512, 512, 512), (128, 768, 768), (128, 768, 3072), (64, 256, 1024))
"""Rows, inputs, outputs."""
CONV: Final = ((64, 64, 3, 56), (256, 64, 1, 28), (128, 128, 3, 28))
"""Inputs, outputs, pixels a side of the kernel and of the picture."""
DEPTHWISE: Final = ((192, 3, 56), (384, 3, 14), (240, 5, 28))
"""Channels, pixels a side of the kernel and of the picture."""
LOOKUPS: Final = ((16384, 384), (4096, 768), (16384, 128))
"""Rows that are looked up, and their width."""
QUANTIZED: Final = (2**20, 2**18, 2**22)
"""Elements."""

MATMUL_INTEGER: Final = "com.microsoft::MatMulIntegerToFloat"

SAYS: Final = {
    "linear": "MatMuls",
    "conv": "Convs",
    "depthwise": "depthwise Convs",
    "gather": "Gathers",
    "elementwise": f"QuantizeLinears, {CONVERTED} operations an element",
    "int8": "of those products by MatMulIntegerToFloat",
    "bandwidth": f"Add on arrays of {4 * ELEMENTS / 1e6:.0f} MB",
    "core": "the same Add with one thread",
    "cached": "smaller Adds",
    "chain": f"per node of a chain of {TINY} tiny Adds",
    "single": "a model of one tiny Add",
}
"""What the kernels are, by what they tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A chain of nodes to time. amount: operations, or bytes moved where it has none."""

    nodes: list[tuple[str, str, Mapping[str, Any]]]
    feed: Mapping[str, Array]
    constants: Mapping[str, Array]
    amount: float
    threads: int | None = None


def measure_rates(say: Callable[[int, int], None]) -> Rates:
    """Time the kernels; some ten seconds.

    Raises:
        MissingDependencyError: onnxruntime or onnx is not installed.
    """
    require("onnx", "onnxruntime")
    kernels = kernels_of(np.random.default_rng(0))
    timers = {name: [_timer(kernel) for kernel in each] for name, each in kernels.items()}
    return fit_rates(kernels, least_seconds(timers, say), SAYS)


def kernels_of(rng: np.random.Generator) -> dict[str, list[Kernel]]:
    """What is timed, by what it tells."""

    def floats(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    def add(count: int, threads: int | None = None) -> Kernel:
        return Kernel(
            nodes=[("Add", "x x", {})],
            feed={"x": floats(count)},
            constants={},
            amount=2 * 4 * count,
            threads=threads,
        )

    def tiny(count: int) -> Kernel:
        feed, constants = {"x": floats(1)}, {"y": floats(1)}
        return Kernel(
            nodes=[("Add", "x y", {})] * count, feed=feed, constants=constants, amount=count
        )

    def linear(rows: int, inputs: int, outputs: int) -> Kernel:
        return Kernel(
            nodes=[("MatMul", "x w", {})],
            feed={"x": floats(rows, inputs)},
            constants={"w": floats(inputs, outputs)},
            amount=2 * rows * inputs * outputs,
        )

    def integer(rows: int, inputs: int, outputs: int) -> Kernel:
        scale = np.array(0.01, dtype=np.float32)
        weight = rng.integers(-127, 127, (inputs, outputs), dtype=np.int8)
        return Kernel(
            nodes=[(MATMUL_INTEGER, "x w a b", {})],
            feed={"x": rng.integers(0, 255, (rows, inputs), dtype=np.uint8)},
            constants={"w": weight, "a": scale, "b": scale},
            amount=2 * rows * inputs * outputs,
        )

    def conv(inputs: int, outputs: int, size: int, side: int, groups: int = 1) -> Kernel:
        weight = floats(outputs, inputs // groups, size, size)
        return Kernel(
            nodes=[("Conv", "x w", {"pads": [size // 2] * 4, "group": groups})],
            feed={"x": floats(1, inputs, side, side)},
            constants={"w": weight},
            amount=2 * weight.size * side**2,
        )

    def gather(rows: int, width: int) -> Kernel:
        return Kernel(
            nodes=[("Gather", "w x", {})],
            feed={"x": rng.integers(0, TABLE, (rows,))},
            constants={"w": floats(TABLE, width)},
            amount=2 * 4 * rows * width,
        )

    def quantizing(count: int) -> Kernel:
        return Kernel(
            nodes=[("QuantizeLinear", "x a z", {})],
            feed={"x": floats(count)},
            constants={"a": np.array(0.01, np.float32), "z": np.array(0, np.uint8)},
            amount=CONVERTED * count,
        )

    return {
        "linear": [linear(*shape) for shape in LINEAR],
        "int8": [integer(*shape) for shape in LINEAR[:3]],
        "conv": [conv(*shape) for shape in CONV],
        "depthwise": [conv(each, each, size, side, each) for each, size, side in DEPTHWISE],
        "gather": [gather(*shape) for shape in LOOKUPS],
        "elementwise": [quantizing(count) for count in QUANTIZED],
        "bandwidth": [add(ELEMENTS)],
        "core": [add(ELEMENTS, threads=1)],
        "cached": [add(count) for count in SMALLER],
        "chain": [tiny(TINY)],
        "single": [tiny(1)],
    }


def _timer(kernel: Kernel) -> Callable[[], float]:
    """What gives the low quantile of some runs of a kernel, each time it is called."""
    with tempfile.TemporaryDirectory(prefix="advisor-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(_model(kernel.nodes, kernel.feed, kernel.constants))
        session = open_session(path, {}, threads=kernel.threads)
    arrays = dict(kernel.feed)

    def time_once() -> float:
        wait_until_idle()
        runs: list[float] = []
        begin = time.monotonic()
        session.run(None, arrays)
        while len(runs) < LEAST_RUNS or time.monotonic() - begin < BUDGET_S:
            started = time.perf_counter()
            session.run(None, arrays)
            runs.append(time.perf_counter() - started)
        return low_quantile(runs)

    return time_once


def _model(
    nodes: list[tuple[str, str, Mapping[str, Any]]],
    feed: Mapping[str, Array],
    constants: Mapping[str, Array],
) -> bytes:
    """A chain of nodes (operator, inputs, attributes) on ``feed``; the first input of every node
    but the first is the output of the node before."""
    from onnx import TensorProto, helper, numpy_helper

    made: list[Any] = []
    for index, (operator, inputs, attributes) in enumerate(nodes):
        domain, _, name = operator.rpartition("::")
        names = inputs.split()
        if index:
            names[0] = f"v{index - 1}"
        made.append(helper.make_node(name, names, [f"v{index}"], domain=domain, **attributes))
    last = made[-1].op_type
    kind = TensorProto.UINT8 if last == "QuantizeLinear" else TensorProto.FLOAT
    graph = helper.make_graph(
        made,
        "rates",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in feed.items()
        ],
        [helper.make_tensor_value_info(f"v{len(nodes) - 1}", kind, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())
