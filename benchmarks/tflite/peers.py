"""What ai-edge-quantizer makes of a float model, one process per recipe.

    python -m benchmarks.tflite.peers METHOD float.tflite calibration.npz out.tflite

Each method is one of the tool's stock recipes as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.peers import load_feeds

METHODS: Final = (
    "dynamic_wi8_afp32",
    "dynamic_wi4_afp32",
    "dynamic_wi4b32_afp32",
    "weight_only_wi8_afp32",
    "weight_only_wi4_afp32",
    "static_wi8_ai8",
    "static_wi8_ai16",
)
"""Functions of ``ai_edge_quantizer.recipe``."""


def quantize(method: str, source: Path, calibration: Path, out: Path) -> None:
    """Apply one recipe, calibrated where it asks for that."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    tool: Any = quantizer.Quantizer(str(source), getattr(recipe, method)())
    found = None
    if tool.need_calibration:
        interpreter: Any = Interpreter(model_path=str(source))
        (key,) = interpreter.get_signature_list()
        details = interpreter.get_signature_runner(key).get_input_details()
        feeds = [
            {name: np.asarray(feed[name], details[name]["dtype"]) for name in details}
            for feed in load_feeds(calibration)
        ]
        found = tool.calibrate({key: feeds})
    tool.quantize(found).export_model(str(out))


if __name__ == "__main__":
    name, *paths = sys.argv[1:]
    quantize(name, *(Path(path) for path in paths))
