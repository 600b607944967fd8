"""What ONNX Runtime's own tools make of a float model, one process per method.

    python -m benchmarks.onnxruntime.peers METHOD float.onnx calibration.npz out.onnx

Each method is the tool's own recipe with its own defaults, on the model that its
``quant_pre_process`` prepared. A method runs in a process of its own, so that whatever it does (an
exception of any kind, a crash) becomes a recorded failure and never ends the comparison.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

TIMEOUT_S: Final = 600
LONGEST_MESSAGE: Final = 400
WITH_WEIGHTS: Final = ["Conv", "Gather", "Gemm", "MatMul"]
"""What "layers only" quantizes. The default quantizes every operator that can be, an attention mask
with its -3e38 included, whose scale then makes every score zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A file that a tool wrote, or the reason why there is none."""

    method: str
    path: Path
    failure: str | None


def make_peer(method: str, source: Path, calibration: Path, path: Path) -> Peer:
    """Run one method in its own process; an existing file is kept.

    source: the float model. calibration: an .npz that ``save_feeds`` wrote.
    """
    if path.exists():
        return Peer(method=method, path=path, failure=None)
    command = [
        sys.executable,
        "-m",
        __spec__.name,
        method,
        str(source),
        str(calibration),
        str(path),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Peer(method=method, path=path, failure=f"no result after {TIMEOUT_S} s")
    if done.returncode == 0:
        return Peer(method=method, path=path, failure=None)
    path.unlink(missing_ok=True)
    said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return Peer(method=method, path=path, failure=said[-1][-LONGEST_MESSAGE:])


def save_feeds(feeds: list[dict[str, np.ndarray[Any, Any]]], path: Path) -> None:
    """Write calibration inputs, keyed by number and input name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"{i}/{name}": value for i, feed in enumerate(feeds) for name, value in feed.items()}
    np.savez(path, allow_pickle=False, **arrays)


def load_feeds(path: Path) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Read what ``save_feeds`` wrote, in order."""
    feeds: dict[int, dict[str, np.ndarray[Any, Any]]] = {}
    with np.load(path) as stored:
        for key in stored.files:
            number, _, name = key.partition("/")
            feeds.setdefault(int(number), {})[name] = stored[key]
    return [feeds[number] for number in sorted(feeds)]


def _prepared(source: Path, out: Path) -> Path:
    """The float model after the tool's recommended preprocessing; made once per model.

    Where its symbolic shape inference fails, it is left out, as the tool's own option allows: it
    knows no ReduceL2, and ends in a TypeError at an Expand after one. The file has fixed shapes,
    all of which the inference by ONNX, which stays, finds as well. It must find them anew: the
    exporter also wrote shapes of the weights, some of which ``quantize_dynamic`` transposes.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = out.with_name("preprocessed.onnx")
    if not path.exists():
        try:
            quant_pre_process(source, path)
        except TypeError as error:
            print(f"no symbolic shape inference, which failed: {error}", file=sys.stderr)
            model = onnx.load(source)
            model.graph.ClearField("value_info")
            bare = out.with_name("bare.onnx")
            onnx.save(model, bare)
            quant_pre_process(bare, path, skip_symbolic_shape=True)
    return path


def _static(source: Path, calibration: Path, out: Path, **options: Any) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # it comes without types
        def __init__(self) -> None:
            self._feeds: Iterator[dict[str, np.ndarray[Any, Any]]] = iter(load_feeds(calibration))

        def get_next(self) -> Any:  # declared as a dict, but None is how it ends
            return next(self._feeds, None)

    quantize_static(_prepared(source, out), out, Reader(), **options)


def _dynamic(source: Path, _calibration: Path, out: Path, **options: Any) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(_prepared(source, out), out, **options)


def _matmul_nbits(source: Path, _calibration: Path, out: Path, **options: Any) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    # Not the preprocessed model, whose MatMul and Add became a Gemm, which this tool skips.
    quantizer: Any = MatMulNBitsQuantizer(onnx.load(source), **options)
    quantizer.process()
    kinds = [node.op_type for node in quantizer.model.model.graph.node]
    if "MatMulNBits" not in kinds:
        raise SystemExit("the model has no MatMul with constant weights, so nothing was quantized")
    quantizer.model.save_model_to_file(str(out), use_external_data_format=False)


Method = Callable[[Path, Path, Path], None]
METHODS: Final[dict[str, Method]] = {
    "static": _static,
    "static per channel": lambda *paths: _static(*paths, per_channel=True),
    "static, layers only": lambda *paths: _static(*paths, op_types_to_quantize=WITH_WEIGHTS),
    "static per channel, layers only": lambda *paths: _static(
        *paths, per_channel=True, op_types_to_quantize=WITH_WEIGHTS
    ),
    "dynamic": _dynamic,
    "dynamic per channel": lambda *paths: _dynamic(*paths, per_channel=True),
    "matmul 4 bits": lambda *paths: _matmul_nbits(*paths, bits=4),
    "matmul 4 bits, int8 products": lambda *paths: _matmul_nbits(*paths, bits=4, accuracy_level=4),
    "matmul 8 bits": lambda *paths: _matmul_nbits(*paths, bits=8),
}
"""``quantize_static``, ``quantize_dynamic`` and ``MatMulNBitsQuantizer`` with their defaults but
for what the name says: "layers only" is ``WITH_WEIGHTS``, and "int8 products" is accuracy level 4
of the same kernel."""


if __name__ == "__main__":
    name, *paths = sys.argv[1:]
    METHODS[name](*(Path(path) for path in paths))
