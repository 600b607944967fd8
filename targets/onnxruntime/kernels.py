"""Which operator ONNX Runtime really executes for every layer, and which ones are acceptable."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from advisor.formats import scheme_named
from advisor.targets.base import LayerFormat, Mismatch
from advisor.targets.manifest import LayerRecord
from advisor.targets.onnxruntime.fences import FENCED
from advisor.targets.onnxruntime.forms import form_of
from advisor.targets.onnxruntime.onnxfile import load_model
from advisor.targets.onnxruntime.rewrite import has_integer_weight
from advisor.targets.onnxruntime.session import EXTERNAL, open_session

if TYPE_CHECKING:
    import onnx_ir as ir

_PREFIX: Final = "(fused )?"
_RENAMED: Final = rf"({re.escape(FENCED)})?(_token_\d+|_nchwc|/\w*Fusion/?)*"
"""What ONNX Runtime's graph transformers put around the name of a node they replace."""

NOT_PACKED: Final = {"session.disable_prepacking": "1"}
"""No copy of each weight in its kernel's layout: nothing is run here."""


INTEGER: Final = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)
"""Operators that multiply integers."""

ROUNDED: Final = "rounded weight"
"""Said of a float operator whose weight ONNX Runtime rounded to integers of its own."""


def acceptable_kernels(layer: LayerRecord) -> frozenset[str]:
    """Operators that compute the layer as planned; empty when any does."""
    form = form_of(layer)
    return frozenset() if form is None else form.kernels(layer)


def find_rounded(
    layers: Iterable[LayerRecord], formats: Mapping[str, LayerFormat]
) -> list[Mismatch]:
    """Layers planned in float that are executed on integers."""
    found: list[Mismatch] = []
    for layer in layers:
        kernel = formats[layer.name].kernel if layer.name in formats else ""
        is_rounded = kernel in INTEGER or kernel.endswith(ROUNDED)
        if is_rounded and scheme_named(layer.scheme).activation is None:
            found.append(
                Mismatch(
                    name=layer.name,
                    expected=f"{layer.scheme}, computed in float",
                    found=f"executed by {kernel}",
                )
            )
    return found


def executed_kernels(
    model: Path,
    layers: Iterable[LayerRecord],
    entries: Mapping[str, str],
    *,
    dimensions: Mapping[str, int],
) -> dict[str, str]:
    """The operator of ONNX Runtime's optimised graph by layer name; missing when not found.

    dimensions: sizes to fix, by the name of a dynamic dimension.
    """
    with tempfile.TemporaryDirectory(prefix="advisor-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        unpacked = {**entries, **EXTERNAL, **NOT_PACKED}
        open_session(model, unpacked, optimized=optimized, dimensions=dimensions)
        graph = load_model(optimized).graph
        return {layer.name: kernel for layer in layers if (kernel := _kernel(graph, layer))}


def with_kernels(
    formats: Mapping[str, LayerFormat], kernels: Mapping[str, str]
) -> dict[str, LayerFormat]:
    """The formats with the operators that run them; empty where none was found."""
    return {name: replace(it, kernel=kernels.get(name, "")) for name, it in formats.items()}


def _kernel(graph: ir.Graph, layer: LayerRecord) -> str:
    pattern = re.compile(_PREFIX + re.escape(layer.node) + _RENAMED)
    stored = (f"{layer.name}.weight", layer.weight)
    readers: list[str] = []
    for node in graph:
        if pattern.fullmatch(str(node.name)):
            return f"{node.op_type}, {ROUNDED}" if has_integer_weight(node) else node.op_type
        names = [str(value.name) for value in node.inputs if value is not None]
        if any(name == part or name == f"{part}_T" for name in names for part in stored):
            readers.append(node.op_type)
    return readers[0] if readers else ""
