"""What ONNX Runtime's own tools make of a float model, one process per method.

    python -m benchmarks.onnxruntime.peers METHOD float.onnx calibration.npz out.onnx

Each method is the tool's own recipe with its own defaults, on the model that its
``quant_pre_process`` prepared. A method runs in a process of its own, so that whatever it does (an
exception of any kind, a crash) becomes a recorded failure and never ends the comparison.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.peers import load_feeds

WITH_WEIGHTS: Final = ["Conv", "Gather", "Gemm", "MatMul"]
"""What "layers only" quantizes. The default quantizes every operator that can be, an attention mask
with its -3e38 included, whose scale then makes every score zero."""


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
