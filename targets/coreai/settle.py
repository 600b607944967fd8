"""Make two conversions of the same graph the same bytes.

Core AI draws the names of composite operators at random, and names the large constants that its own
passes fold after their place in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from advisor.targets.coreai.constants import (
    constant_attribute,
    dtype_of,
    read_constant,
    resource_name,
)
from advisor.targets.coreai.packages import load

ADDRESSED: Final = "resource_"
"""How Core AI's own names of resources begin."""


INVOKE: Final = "coreai.invoke"

CALLEE: Final = re.compile(r"(.*<@)(\w+)(>.*)")
"""How a call of a composite operator names it."""

DRAWN: Final = re.compile(r"(.+)_[a-z]{8}")
"""Names of composite operators: what they are, and eight letters drawn at random."""


def settle(program: Any) -> None:
    """Name what Core AI named at random after its place in the program."""
    ir = load("coreai._compiler.ir")
    module = program._module._mlir_module
    with module.context, ir.Location.unknown():
        _name_composites(ir, module)
        _name_resources(module)


def _name_composites(ir: Any, module: Any) -> None:
    settled: dict[str, str] = {}
    for index, graph in enumerate(module.body.operations):
        drawn = DRAWN.fullmatch(graph.attributes["sym_name"].value)
        if drawn and "composite_decl" in graph.attributes:
            settled[drawn[0]] = f"{drawn[1]}_{index}"
            graph.attributes["sym_name"] = ir.StringAttr.get(settled[drawn[0]])
    for op in walk(module.operation):
        if op.name != INVOKE:
            continue
        called = CALLEE.fullmatch(str(op.attributes["callee"]))
        if called and called[2] in settled:
            text = f"{called[1]}{settled[called[2]]}{called[3]}"
            op.attributes["callee"] = ir.Attribute.parse(text)


def _name_resources(module: Any) -> None:
    constants = (op for op in walk(module.operation) if op.name == "coreai.constant")
    for index, op in enumerate(constants):
        dtype = dtype_of(op.results[0])
        if dtype and resource_name(op.attributes["value"]).startswith(ADDRESSED):
            values = read_constant(op).numpy()
            op.attributes["value"] = constant_attribute(values, dtype, f"folded_{index}")


def walk(operation: Any) -> Iterator[Any]:
    """Every operation inside another, in order."""
    for region in operation.regions:
        for block in region.blocks:
            for op in block.operations:
                yield op.operation
                yield from walk(op.operation)
