"""Which operator ONNX Runtime really executes for every layer, and which ones are acceptable."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from advisor.targets.onnxruntime.manifest import LayerRecord
from advisor.targets.onnxruntime.onnxfile import load_model
from advisor.targets.onnxruntime.session import EXTERNAL, open_session

if TYPE_CHECKING:
    import onnx_ir as ir

_PREFIX: Final = "(fused )?"
_RENAMED: Final = r"(_token_\d+|_nchwc|/\w*Fusion/?)*"
"""What ONNX Runtime's graph transformers put around the name of a node they replace."""

STATIC_CONV: Final = frozenset({"QLinearConv"})
STATIC_LINEAR: Final = frozenset({"MatMulIntegerToFloat", "QLinearMatMul", "QGemm"})
BLOCK_LINEAR: Final = frozenset({"MatMulNBits"})
BYTE_EMBEDDING: Final = frozenset({"DequantizeLinear"})
BLOCK_EMBEDDING: Final = frozenset({"GatherBlockQuantized"})


def acceptable_kernels(layer: LayerRecord) -> frozenset[str]:
    """Operators that compute the layer as planned; empty when any does."""
    scheme = "w8" if layer.op == "embedding" and layer.scheme == "w8a8" else layer.scheme
    if not scheme.startswith("w"):
        return frozenset()
    if scheme == "w8a8":
        return STATIC_CONV if layer.op.startswith("conv") else STATIC_LINEAR
    if layer.op == "embedding":
        return BYTE_EMBEDDING if scheme.startswith("w8") else BLOCK_EMBEDDING
    if layer.op != "linear":
        return frozenset()
    return BLOCK_LINEAR | STATIC_LINEAR if layer.reads_integers else BLOCK_LINEAR


def executed_kernels(
    model: Path, layers: Iterable[LayerRecord], entries: Mapping[str, str]
) -> dict[str, str]:
    """The operator of ONNX Runtime's optimised graph by layer name; missing when not found."""
    with tempfile.TemporaryDirectory(prefix="advisor-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(model, {**entries, **EXTERNAL}, optimized=optimized)
        graph = load_model(optimized).graph
        return {layer.name: kernel for layer in layers if (kernel := _kernel(graph, layer))}


def _kernel(graph: ir.Graph, layer: LayerRecord) -> str:
    pattern = re.compile(_PREFIX + re.escape(layer.name) + _RENAMED)
    stored = (f"{layer.name}.weight", layer.weight)
    readers: list[str] = []
    for node in graph:
        if pattern.fullmatch(str(node.name)):
            return node.op_type
        names = [str(value.name) for value in node.inputs if value is not None]
        if any(name == part or name == f"{part}_T" for name in names for part in stored):
            readers.append(node.op_type)
    return readers[0] if readers else ""
