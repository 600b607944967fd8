"""Which tensors are integers, spelled as indicators of the optimisation problem."""

from __future__ import annotations

from collections.abc import Sequence

from advisor.formats import scheme_named
from advisor.passes.graph import name_of
from advisor.passes.regions import All, Any, Expression, IsNeeded, IsProduced, IsStatic
from advisor.search.problem import Indicator, Literal
from advisor.setting import Setting


class Indicators:
    """The indicators of every site, and their indices by what they say.

    produced: the tensor is computed as integers. edges: (tensor, reader) quantizes it for this
    reader alone. enters: some edge does. leaves: it is integer and something reads floats.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.all: list[Indicator] = []
        self.produced: dict[str, int] = {}
        self.edges: dict[tuple[str, str], int] = {}
        self.enters: dict[str, int] = {}
        self.leaves: dict[str, int] = {}
        self._unneeded: dict[str, int] = {}
        self._static = self._static_literals()
        regions = setting.regions
        order = [name_of(node) for node in setting.graph.module.graph.nodes]
        for tensor in sorted(regions.needed, key=order.index, reverse=True):
            expression = regions.needed[tensor]
            parts = expression.parts if isinstance(expression, Any) else (expression,)
            none = tuple(self._literal(part, negated=True) for part in parts)
            self._unneeded[tensor] = self.add(f"nothing integer reads {tensor}", none)
        for site in regions.sites:
            if site.tensor in regions.produced:
                literals = self._conjunction(regions.produced[site.tensor])
                self.produced[site.tensor] = self.add(f"{site.tensor} is integer", literals)
        for site in regions.sites:
            self._add_boundaries(site.tensor, site.readers)

    def _add_boundaries(self, tensor: str, readers: Sequence[str]) -> None:
        made = self.produced.get(tensor)
        not_made = () if made is None else (Literal(indicator=made, negated=True),)
        for reader in readers:
            literals = (self._static[reader], *not_made)
            self.edges[tensor, reader] = self.add(f"{reader} reads {tensor} as integer", literals)
        if readers:
            unread = self.add(
                f"no layer reads {tensor} as integer",
                tuple(Literal(indicator=self.edges[tensor, r], negated=True) for r in readers),
            )
            enters = (Literal(indicator=unread, negated=True),)
            self.enters[tensor] = self.add(f"{tensor} is quantized on its own", enters)
        if made is not None:
            inside = self._conjunction(self.setting.regions.consumed[tensor])
            outside: tuple[Literal, ...] = ()
            if inside:
                only_integers = self.add(f"only integers read {tensor}", inside)
                outside = (Literal(indicator=only_integers, negated=True),)
            leaves = (Literal(indicator=made), *outside)
            self.leaves[tensor] = self.add(f"{tensor} becomes float again", leaves)

    def _static_literals(self) -> dict[str, Literal]:
        found: dict[str, Literal] = {}
        for index, group in enumerate(self.setting.groups):
            options = self.setting.space.candidates[group.name]
            static = tuple(
                i for i, option in enumerate(options) if scheme_named(option.scheme).is_static
            )
            for layer in group.layers:
                found[layer] = Literal(group=index, candidates=static)
        return found

    def _conjunction(self, expression: Expression) -> tuple[Literal, ...]:
        """Literals of an ``All``; empty for an expression that never holds."""
        if isinstance(expression, Any):
            return ()
        parts = expression.parts if isinstance(expression, All) else (expression,)
        return tuple(self._literal(part, negated=False) for part in parts)

    def _literal(self, part: Expression, *, negated: bool) -> Literal:
        match part:
            case IsStatic(layer=layer):
                base = self._static[layer]
                return Literal(group=base.group, candidates=base.candidates, negated=negated)
            case IsProduced(tensor=tensor):
                return Literal(indicator=self.produced[tensor], negated=negated)
            case IsNeeded(tensor=tensor):
                return Literal(indicator=self._unneeded[tensor], negated=not negated)
            case _:
                raise TypeError(f"regions never nest {part}")

    def add(self, name: str, literals: Sequence[Literal]) -> int:
        """One more indicator; its index."""
        self.all.append(Indicator(name=name, literals=tuple(literals)))
        return len(self.all) - 1
