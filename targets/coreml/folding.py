"""Constants are computed while converting, but layers stay layers.

A table of positions that is read at indices known beforehand is a constant to coremltools, which
puts the rows read into the package. The plan has a scheme for that table, and the package must too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from advisor.targets.coreml.names import is_named
from advisor.targets.coreml.packages import load

THEIRS: Final = "common::const_elimination"
OURS: Final = "advisor::fold_around_layers"


def keep_layers(pipeline: Any, layers: Iterable[str]) -> None:
    """Let a pipeline of coremltools fold all constants but what these operators compute.

    layers: names of operators, as ``Names.layers`` has them.
    """
    kept = tuple(layers)
    base = load("coremltools.converters.mil.mil.passes.defs.cleanup.const_elimination")
    register = load("coremltools.converters.mil.mil.passes.pass_registry").register_pass

    class Folding(base.const_elimination):  # type: ignore[misc]  # coremltools has no types
        """coremltools' own pass, told that more variables must not be replaced."""

        def apply(self, prog: Any) -> None:
            blocks = list(prog.functions.values())
            with _irreplaceable(blocks, kept):
                super().apply(prog)

    namespace, _, name = OURS.partition("::")
    register(namespace=namespace, override=True, name=name)(Folding)
    pipeline.passes = [OURS if each == THEIRS else each for each in pipeline.passes]


@contextmanager
def _irreplaceable(blocks: list[Any], layers: tuple[str, ...]) -> Iterator[None]:
    """While it lasts, results of these layers count as those of ``constexpr_`` operators do: they
    and what is computed from them stay."""
    variable = load("coremltools.converters.mil.mil.var").Var
    original = variable._is_nonreplaceable_var

    def holds(var: Any) -> bool:
        if original(var):
            return True
        return var.op is not None and any(is_named(var.op, layer) for layer in layers)

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
