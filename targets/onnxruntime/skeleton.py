"""The float graph in ONNX with markers in place of its layers: made once, filled by every plan."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import torch
from torch.fx import GraphModule

from advisor.errors import UnsupportedError
from advisor.passes.candidates import regions_of
from advisor.passes.graph import Graph
from advisor.targets.capability import load_capability
from advisor.targets.onnxruntime.markers import mark, translations
from advisor.targets.onnxruntime.tidy import tidy
from advisor.targets.reexport import quiet, reexport

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch.onnx import ONNXProgram

OPSET: Final = 21
"""ONNX operators of this version; see ``write.py`` for the only exception."""

_MADE: WeakKeyDictionary[GraphModule, tuple[frozenset[str], ir.Model]] = WeakKeyDictionary()


def skeleton_of(graph: Graph, sites: Collection[str], runtime: str = "onnxruntime") -> ir.Model:
    """The skeleton with markers at least at these nodes; whoever changes it must clone it first.

    runtime: whose plans it is for; one made for another serves too where it has the markers.

    Raises:
        UnsupportedError: torch.onnx has no ONNX form of an operator.
        VerificationError: a dimension that should be dynamic became fixed.
    """
    known, model = _MADE.get(graph.module, (frozenset[str](), None))
    if model is None or not known.issuperset(sites):
        known = known | _possible_sites(graph, runtime) | frozenset(sites)
        model = _export(graph, known)
        _MADE[graph.module] = (known, model)
    return model


def _possible_sites(graph: Graph, runtime: str) -> frozenset[str]:
    """Nodes that some plan for the runtime quantizes."""
    regions = regions_of(graph, load_capability(runtime))
    return frozenset(site.node for site in regions.sites)


def _export(graph: Graph, sites: frozenset[str]) -> ir.Model:
    program = reexport(mark(graph, sites), graph)
    torch_onnx: Any = torch.onnx  # the types of export's parameters are incomplete
    try:
        with quiet():
            converted: ONNXProgram | None = torch_onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table=translations(),
                optimize=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise UnsupportedError(
            f"torch.onnx cannot write the model: {_innermost(error)}; rewrite that operator with "
            "others, or plan for a runtime that has it"
        ) from error
    if converted is None or converted.exported_program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return tidy(converted.model, converted.exported_program, graph)


def _innermost(error: BaseException) -> str:
    """First line of what went wrong first: the operator without a translation."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
