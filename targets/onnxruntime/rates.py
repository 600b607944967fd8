"""How fast ONNX Runtime's kernels are on this machine, from a few models of one operator."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from advisor.profiles.rates import Rates
from advisor.targets.onnxruntime.session import open_session, require
from advisor.targets.statistics import low_quantile

Array = np.ndarray[Any, Any]

BUDGET_S: Final = 1.0
"""Time to spend on one kernel."""

LEAST_RUNS: Final = 5
SIDE: Final = 512
ELEMENTS: Final = 2**23
TINY: Final = 200


SAYS: Final = {
    "float32_ops_per_s": "MatMul 512 x 512 x 512",
    "int8_ops_per_s": "MatMulIntegerToFloat 512 x 512 x 512",
    "bandwidth_bytes_per_s": "Add on arrays of 34 MB",
    "core_bandwidth_bytes_per_s": "the same Add with one thread",
    "launch_s": "per node of a chain of 200 tiny Adds",
    "dispatch_s": "a model of one tiny Add",
    "linear_ops_per_s": "MatMul 128 x 768 x 768",
    "conv_ops_per_s": "Conv 3x3, 64 to 64 channels, 56 x 56,",
    "depthwise_ops_per_s": "depthwise Conv 3x3, 192 channels, 56 x 56,",
    "gather_bytes_per_s": "Gather of 16384 rows of 384",
    "elementwise_ops_per_s": "QuantizeLinear of 2^20 elements, 4 operations each,",
}


def measure_rates(say: Callable[[int, int], None]) -> Rates:
    """Time the kernels; some ten seconds.

    Raises:
        MissingDependencyError: onnxruntime or onnx is not installed.
    """
    require("onnx", "onnxruntime")
    rng = np.random.default_rng(0)

    def floats(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    bytes_ = rng.integers(0, 255, (SIDE, SIDE), dtype=np.uint8)
    weights = rng.integers(-127, 127, (SIDE, SIDE), dtype=np.int8)
    scale = np.array(0.01, dtype=np.float32)
    long = {"x": floats(ELEMENTS)}
    ids = rng.integers(0, 30_000, (2**14,))
    integer: dict[str, Array] = {"w": weights, "a": scale, "b": scale}
    square = floats(SIDE, SIDE)
    microsoft = "com.microsoft::MatMulIntegerToFloat"
    work: list[Callable[[], float]] = [
        lambda: _seconds([("MatMul", "x w", {})], {"x": square}, {"w": square}),
        lambda: _seconds([(microsoft, "x w a b", {})], {"x": bytes_}, integer),
        lambda: _seconds([("Add", "x x", {})], long, {}),
        lambda: _seconds([("Add", "x x", {})], long, {}, threads=1),
        lambda: _seconds([("Add", "x y", {})] * TINY, {"x": floats(1)}, {"y": floats(1)}),
        lambda: _seconds([("Add", "x y", {})], {"x": floats(1)}, {"y": floats(1)}),
        lambda: _seconds([("MatMul", "x w", {})], {"x": floats(128, 768)}, {"w": floats(768, 768)}),
        lambda: _seconds(
            [("Conv", "x w", {"pads": [1] * 4})],
            {"x": floats(1, 64, 56, 56)},
            {"w": floats(64, 64, 3, 3)},
        ),
        lambda: _seconds(
            [("Conv", "x w", {"pads": [1] * 4, "group": 192})],
            {"x": floats(1, 192, 56, 56)},
            {"w": floats(192, 1, 3, 3)},
        ),
        lambda: _seconds([("Gather", "w x", {})], {"x": ids}, {"w": floats(30_000, 384)}),
        lambda: _seconds(
            [("QuantizeLinear", "x a z", {})],
            {"x": floats(2**20)},
            {"a": scale, "z": np.array(0, dtype=np.uint8)},
        ),
    ]
    found: list[float] = []
    for index, each in enumerate(work):
        say(index, len(work))
        found.append(each())
    say(len(work), len(work))
    matmul, product, add, add_one, chain, single, linear, conv, depthwise, gather, convert = found
    positions = 56 * 56
    middling = (2 * 128 * 768 * 768 / linear, 2 * 64 * 64 * 9 * positions / conv)
    return Rates(
        float32_ops_per_s=max(2 * SIDE**3 / matmul, *middling),
        int8_ops_per_s=2 * SIDE**3 / product,
        bandwidth_bytes_per_s=2 * 4 * ELEMENTS / add,
        core_bandwidth_bytes_per_s=2 * 4 * ELEMENTS / add_one,
        launch_s=max(chain - single, 0.0) / (TINY - 1),
        dispatch_s=single,
        linear_ops_per_s=middling[0],
        conv_ops_per_s=middling[1],
        depthwise_ops_per_s=2 * 192 * 9 * positions / depthwise,
        gather_bytes_per_s=2 * 4 * ids.size * 384 / gather,
        elementwise_ops_per_s=4 * 2**20 / convert,
        says=SAYS,
    )


def _seconds(
    nodes: list[tuple[str, str, Mapping[str, Any]]],
    feed: Mapping[str, Array],
    constants: Mapping[str, Array],
    *,
    threads: int | None = None,
) -> float:
    """Low quantile of running a chain of nodes (operator, inputs, attributes) on ``feed``.

    The first input of every node but the first is the output of the node before.
    """
    with tempfile.TemporaryDirectory(prefix="advisor-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(_model(nodes, feed, constants))
        session = open_session(path, {}, threads=threads)
    arrays = dict(feed)
    runs: list[float] = []
    begin = time.monotonic()
    session.run(None, arrays)
    while len(runs) < LEAST_RUNS or time.monotonic() - begin < BUDGET_S:
        started = time.perf_counter()
        session.run(None, arrays)
        runs.append(time.perf_counter() - started)
    return low_quantile(runs)


def _model(
    nodes: list[tuple[str, str, Mapping[str, Any]]],
    feed: Mapping[str, Array],
    constants: Mapping[str, Array],
) -> bytes:
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
