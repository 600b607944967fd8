"""A quantized graph in, an ONNX model in memory out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from advisor.passes.fx import placeholders
from advisor.passes.graph import Graph, QuantizedGraph
from advisor.targets.onnxruntime.legalise import legalise
from advisor.targets.onnxruntime.nodes import argument_names
from advisor.targets.onnxruntime.operators import translations
from advisor.targets.onnxruntime.tidy import tidy

if TYPE_CHECKING:
    import onnx_ir
    from torch.onnx import ONNXProgram

OPSET: Final = 21
"""ONNX operators of this version; 25 when two-bit integers are stored (IR 13 has them first)."""

_CHATTY: Final = "torch.onnx._internal.exporter._registration"


def export_onnx(graph: QuantizedGraph) -> onnx_ir.Model:
    """The ONNX model of ``graph``: inputs, outputs, layers and dimensions under stable names.

    Raises:
        UnsupportedError: a layer has a form no kernel of ONNX Runtime takes.
        VerificationError: a dimension that should be dynamic became fixed.
    """
    source = graph.float_graph
    program = reexport(legalise(graph), source)
    torch_onnx: Any = torch.onnx  # the types of export's parameters are incomplete
    with _quiet():
        converted: ONNXProgram | None = torch_onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table=translations(),
            optimize=False,
            verbose=False,
        )
    if converted is None or converted.exported_program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return tidy(converted.model, converted.exported_program, source)


def reexport(module: GraphModule, source: Graph) -> ExportedProgram:
    """Export an edited module again, with the inputs and dynamic dimensions of ``source``."""
    with _quiet(), torch.no_grad():
        return torch.export.export(
            module,
            tuple(source.args),
            dict(source.kwargs),
            dynamic_shapes=_dynamic_shapes(source),
        )


def _dynamic_shapes(source: Graph) -> tuple[Any, ...] | dict[str, Any]:
    """torch.export's spec, in the structure of the arguments, from dimensions by input name."""
    dims: Mapping[str, Mapping[int, str]] = source.dynamic
    nodes = placeholders(source.module)
    specs = iter([dict.fromkeys(dims.get(node.name, {}), Dim.AUTO) for node in nodes])

    def spec(value: Any) -> Any:
        found = next(specs)
        return found if isinstance(value, torch.Tensor) else None

    args, kwargs = pytree.tree_map(spec, (tuple(source.args), dict(source.kwargs)))
    if not kwargs:
        return tuple(args)
    names = argument_names(source.module)
    return {**dict(zip(names, args, strict=False)), **kwargs}


@contextmanager
def _quiet() -> Generator[None]:
    """Silence what torch says about itself: a missing torchvision, a renamed pytree class."""
    logger = logging.getLogger(_CHATTY)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
