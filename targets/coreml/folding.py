"""Constants are computed while converting, but layers stay layers.

A table of positions that is read at indices known beforehand is a constant to coremltools, which
puts the rows read into the package; so is a constant that is repeated for every sample, where there
is one. The plan has a scheme for them, and the package must hold them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, Final, cast

from advisor.targets.coreml.names import inputs_of, is_named
from advisor.targets.coreml.packages import load

SPARING: Final = ("const_elimination", "noop_elimination")
"""Passes of coremltools that must spare layers: they compute constants, and take out what changes
nothing, as a table of zeros that is added."""


def keep_layers(pipeline: Any, layers: Iterable[str], weights: Iterable[str]) -> None:
    """Let a pipeline of coremltools clean up all but what layers compute.

    layers: names of operators, as ``Names.layers`` has them. weights: names of constants, as
    ``Names.weights`` has them, whose readers are layers too.
    """
    named, read = tuple(layers), frozenset(weights)

    def is_layer(op: Any) -> bool:
        if any(is_named(op, name) for name in named):
            return True
        return op.op_type != "cast" and any(var.name in read for var in inputs_of(op))

    registry = load("coremltools.converters.mil.mil.passes.pass_registry")
    for name in SPARING:
        theirs = cast("Any", type(registry.PASS_REGISTRY[f"common::{name}"]))
        ours = type(name, (theirs,), {"apply": _sparing(theirs, is_layer)})
        registry.register_pass(namespace="advisor", override=True)(ours)
    pipeline.passes = [
        each.replace("common::", "advisor::") if each.removeprefix("common::") in SPARING else each
        for each in pipeline.passes
    ]


def _sparing(theirs: Any, is_layer: Callable[[Any], bool]) -> Callable[[Any, Any], None]:
    def apply(self: Any, program: Any) -> None:
        with _irreplaceable(list(program.functions.values()), is_layer):
            theirs.apply(self, program)

    return apply


@contextmanager
def _irreplaceable(blocks: list[Any], is_layer: Callable[[Any], bool]) -> Generator[None]:
    """While it lasts, results of layers count as those of ``constexpr_`` operators do: they
    and what is computed from them stay."""
    variable = load("coremltools.converters.mil.mil.var").Var
    original = variable._is_nonreplaceable_var

    def holds(var: Any) -> bool:
        return original(var) or (var.op is not None and is_layer(var.op))

    variable._is_nonreplaceable_var = staticmethod(holds)
    try:
        _propagate(blocks)
        yield
    finally:
        variable._is_nonreplaceable_var = staticmethod(original)
        _propagate(blocks)


def _propagate(blocks: list[Any]) -> None:
    for block in blocks:
        block._propagate_nonreplaceable_vars()
