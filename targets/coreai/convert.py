"""A quantized graph in, a Core AI program out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import torch
from torch.export import ExportedProgram

from advisor.errors import UnsupportedError
from advisor.passes.blame import locate
from advisor.passes.fx import clone
from advisor.passes.graph import Graph, QuantizedGraph, name_of
from advisor.passes.shapes import deployment_inputs
from advisor.targets.coreai.constants import constant
from advisor.targets.coreai.legalise import count_padding
from advisor.targets.coreai.lowerings import Lowerings
from advisor.targets.coreai.packages import load
from advisor.targets.coreai.settle import settle
from advisor.targets.packages import quiet
from advisor.targets.parts import Names, export_steps, name_parts
from advisor.targets.plainports import Ports, flatten_ports, name_ports, port_dtype

NARROWED: Final = {torch.int64: torch.int32, torch.float64: torch.float32}
"""Dtypes that Core AI does not have, and what the converter makes of them."""

WRITTEN: Final = frozenset({"float32", "float16", "int32", "int8", "uint8"})
"""Dtypes of tensors whose constants are written here; the converter writes the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A program of Core AI, not saved, and what its parts are called."""

    program: Any
    ports: Ports
    names: Names


def convert(graph: QuantizedGraph, batch: int) -> Converted:
    """The graph as a Core AI program of fixed shapes.

    Raises:
        InputError: the model does not accept this batch.
        UnsupportedError: coreai-torch has no form of an operator; names it and the module.
    """
    source = graph.float_graph
    flat = deployment_inputs(source, batch, None)
    module = clone(graph.module)
    flatten_ports(module, flat)
    count_padding(module)
    given = {
        name: value.to(port_dtype(value.dtype))
        for name, value in zip(source.input_names, flat, strict=True)
        if isinstance(value, torch.Tensor)
    }
    table = load("coreai_torch").get_decomp_table()
    program = export_steps(module, source, tuple(given.values()), table)
    names = name_parts(program, source)
    ports = name_ports(tuple(given), source.output_names)
    for node in program.graph.nodes:  # else the file tells where the model's source lies
        node.meta.pop("stack_trace", None)
    return Converted(program=_run_converter(program, source, ports), ports=ports, names=names)


def _run_converter(program: ExportedProgram, source: Graph, ports: Ports) -> Any:
    base: Any = load("coreai_torch").TorchConverter
    # Only this mode says in the file what an operator was made from, by which layers are found.
    converter: Any = base(mode=base.Mode.DEBUG)
    _name_constants(converter)
    Lowerings(program).register(converter)
    try:
        with quiet():
            made = converter.add_exported_program(
                program,
                input_names=list(ports.inputs.values()),
                output_names=list(ports.outputs.values()),
            ).to_coreai()
            settle(made)
            return made
    # coreai-torch and MLIR raise these for what they cannot write; a fault of this package would
    # show in every model.
    except (RuntimeError, ValueError, KeyError, TypeError, AssertionError, IndexError) as error:
        raise UnsupportedError(
            f"Core AI cannot take the model: {_first_line(error)}{_place(source, program, error)}; "
            "rewrite that operator with others, or plan for another runtime (runtime='coreml')"
        ) from error


def _name_constants(converter: Any) -> None:
    """Let a converter write the model's own numbers as resources with names of their own."""
    others: Any = converter._constant_from_tensor
    numbers = count(1)

    def write(tensor: torch.Tensor) -> Any:
        narrow = tensor.detach().cpu().to(NARROWED.get(tensor.dtype, tensor.dtype))
        dtype = str(narrow.dtype).removeprefix("torch.")
        if dtype not in WRITTEN:
            return others(tensor)
        return constant(narrow.contiguous().numpy(), dtype, f"constant_{next(numbers)}")

    converter._constant_from_tensor = write


def _place(source: Graph, program: ExportedProgram, error: BaseException) -> str:
    """Which part of the user's model an error is about: it names the operator, not the place."""
    known = {name_of(each): each for each in source.module.graph.nodes}
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target) in str(error):
            found = known.get(name_of(node))
            return "" if found is None else f" in {locate(found)}"
    return ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
