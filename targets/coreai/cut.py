"""Layers of a saved package as models of their own, made of the package's own operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from advisor.passes.ops import QUANTIZE_STATIC
from advisor.targets.agreement import Tap
from advisor.targets.coreai.packages import load
from advisor.targets.coreai.program import Program, owner_of
from advisor.targets.coreai.readback import GATHER, QUANTIZE, source_integers
from advisor.targets.packages import quiet
from advisor.targets.parts import Names

INPUT: Final = "input"
OUTPUT: Final = "output"


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a layer begins and ends. start, end: values of the package."""

    start: Any
    end: Any


def find_cut(package: Program, names: Names, tap: Tap) -> Cut | None:
    """The layer or quantizer of a tap; None where the package does not have it."""
    if tap.end.target is QUANTIZE_STATIC:
        called = names.tensors.get(tap.layer.node, ())
        ops = [op for name in called for op in package.find(name) if op.name == QUANTIZE]
        return Cut(ops[0].operands[0], ops[0].results[0]) if ops else None
    called_so = names.layers.get(tap.layer.name)
    ops = package.find(called_so) if called_so else []
    if not ops:
        return None
    end = ops[-1].results[0]
    start = _start_of(package, end, ops)
    if start is not None and tap.sources[0].target is QUANTIZE_STATIC:
        start = source_integers(start)
    return None if start is None else Cut(start, end)


def _start_of(package: Program, value: Any, ops: list[Any]) -> Any | None:
    """What the operators of a layer read that neither they nor constants make."""
    op = owner_of(value)
    if op is None or op not in ops:
        return value
    if op.name == GATHER and package.is_fixed(op.operands[1]):
        return op.operands[1]
    moving = [each for each in op.operands if not package.is_fixed(each)]
    return _start_of(package, moving[0], ops) if len(moving) == 1 else None


def save_cuts(cuts: Mapping[str, Cut], path: Path) -> Any:
    """Save a package with one function for each cut, by name, taking ``INPUT`` and giving
    ``OUTPUT``; Core AI's asset."""
    authoring = load("coreai.authoring")
    first = next(iter(cuts.values()))
    with quiet(), first.end.context:
        module = authoring.Module.create()
        with module:
            for name, cut in cuts.items():
                _write(name, cut)
        return authoring.AIProgram(module).save_asset(path)


def _write(name: str, cut: Cut) -> None:
    graph = load("coreai.authoring.graph_builder").GraphOp(
        name, [cut.start.type], [], input_names=[INPUT]
    )
    with graph.block:
        made: dict[Any, Any] = {cut.start: graph.arguments[0]}
        graph.outputs_spec = [(OUTPUT, _copy(cut.end, made))]


def _copy(value: Any, made: dict[Any, Any]) -> Any:
    """A value made again in the graph being written. made: those that are there, by original."""
    if value not in made:
        op = owner_of(value)
        if op is None:
            raise ValueError(f"{value} is another input of the model")
        operands = [_copy(each, made) for each in op.operands]
        clone = op.clone()
        for index, operand in enumerate(operands):
            clone.operands[index] = operand
        made.update(zip(op.results, clone.results, strict=True))
    return made[value]
