"""Constants are computed while converting, but layers stay layers.

A table of positions that is read at indices known beforehand is a constant to coremltools, which
puts the rows read into the package; so is a constant that is repeated for every sample, where there
is one. The plan has a scheme for them, and the package must hold them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from advisor.targets.coreml.names import inputs_of, is_named
from advisor.targets.coreml.packages import load

THEIRS: Final = "common::const_elimination"
OURS: Final = "advisor::fold_around_layers"


def keep_layers(pipeline: Any, layers: Iterable[str], weights: Iterable[str]) -> None:
    """Let a pipeline of coremltools fold all constants but what layers compute.

    layers: names of operators, as ``Names.layers`` has them. weights: names of constants, as
    ``Names.weights`` has them, whose readers are layers too.
    """
    named, read = tuple(layers), frozenset(weights)

    def is_layer(op: Any) -> bool:
        if any(is_named(op, name) for name in named):
            return True
        return op.op_type != "cast" and any(var.name in read for var in inputs_of(op))

    passes = load("coremltools.converters.mil.mil.passes.defs.cleanup.const_elimination")
    theirs: Any = passes.const_elimination
    register = load("coremltools.converters.mil.mil.passes.pass_registry").register_pass

    def apply(self: Any, program: Any) -> None:
        with _irreplaceable(list(program.functions.values()), is_layer):
            theirs.apply(self, program)

    namespace, _, name = OURS.partition("::")
    register(namespace=namespace, override=True)(type(name, (theirs,), {"apply": apply}))
    pipeline.passes = [OURS if each == THEIRS else each for each in pipeline.passes]


@contextmanager
def _irreplaceable(blocks: list[Any], is_layer: Callable[[Any], bool]) -> Iterator[None]:
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
