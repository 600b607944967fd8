"""A float graph in, the bytes of a TFLite model with markers out."""

from __future__ import annotations

import os
import re
from typing import Any, Final

import torch
from torch import nn
from torch.fx import GraphModule
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from advisor.errors import UnsupportedError
from advisor.passes.blame import locate
from advisor.passes.graph import Graph
from advisor.passes.shapes import deployment_inputs, infer_shapes
from advisor.targets.packages import quiet
from advisor.targets.tflite.decompositions import flatten_rows, register_decompositions
from advisor.targets.tflite.markers import mark, register_lowering, values_of
from advisor.targets.tflite.packages import load

_CALL: Final = re.compile(r"^\s*(\w+) = torch\.ops\.", re.MULTILINE)
"""A line of the module's generated code, as the converter's errors quote it."""


def convert(graph: Graph, batch: int, sequence: int | None) -> bytes:
    """The graph as a flatbuffer of fixed shapes, with a marker behind every value to find again.

    Its inputs are the tensor inputs of the graph in order, its outputs the tensors it returns.

    Raises:
        InputError: the model does not accept this batch or sequence.
        UnsupportedError: the converter has no form of an operator.
    """
    flat = deployment_inputs(graph, batch, sequence)
    marked = mark(graph, values_of(graph))
    flatten_rows(marked, infer_shapes(graph.module, flat))
    module = _Flat(marked, flat)
    tensors = tuple(value for value in flat if isinstance(value, torch.Tensor))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with quiet():
        litert_torch = load("litert_torch")
        register_lowering()
        register_decompositions()
        try:
            model: Any = litert_torch.convert(module.eval(), tensors)
            return bytes(model.model_content())
        # litert-torch and MLIR raise these for what they cannot write; a fault of this package
        # would show in every model.
        except (RuntimeError, ValueError, NotImplementedError, KeyError, TypeError) as error:
            raise UnsupportedError(
                f"litert-torch cannot convert the model: {_first_line(error)}"
                f"{_place(graph, error)}; rewrite that operator with others, or plan for another "
                "runtime (runtime='onnxruntime')"
            ) from error


def _place(graph: Graph, error: BaseException) -> str:
    """Which part of the user's model an error of the converter is about, as far as it says."""
    nodes = {node.name: node for node in graph.module.graph.nodes}
    named = [nodes[name] for name in _CALL.findall(str(error)) if name in nodes]
    return f" in {locate(named[-1])}" if named else ""


class _Flat(nn.Module):
    """The graph as a function of tensors alone, which returns a tuple of tensors."""

    def __init__(self, module: GraphModule, flat: list[Any]) -> None:
        super().__init__()
        module.graph.set_codegen(CodeGen())  # takes and returns flat lists
        module.recompile()
        self.inner = module
        self.flat = flat

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        remaining = iter(tensors)
        values = [next(remaining) if isinstance(v, torch.Tensor) else v for v in self.flat]
        outputs = pytree.tree_leaves(self.inner(*values))
        return tuple(value for value in outputs if isinstance(value, torch.Tensor))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
