"""Rounded weights kept between passes: rounding a large table well takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from advisor.formats import EXACT, ScaleRounding, TensorFormat
from advisor.passes.fx import attribute
from advisor.passes.graph import Graph, WeightTable
from advisor.passes.rounding import round_weight

LIMIT_BYTES: Final = 2**31
"""Integers kept; what does not fit any more is rounded again when it is needed."""


class RoundedWeights:
    """The tables of one graph's weights by (weight, format, algorithm), made on demand.

    base: of a graph that this one was made from; weights still the same are rounded there.
    scales: what the runtime rounds scales to. importance: by weight name, for algorithms that
    need data: the mean square of what every input channel reads.
    """

    def __init__(
        self,
        graph: Graph,
        limit_bytes: int = LIMIT_BYTES,
        base: RoundedWeights | None = None,
        scales: ScaleRounding = EXACT,
        importance: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self._graph = graph
        self._base = base
        self._scales: ScaleRounding = scales if base is None else base._scales
        self._importance = dict(importance or {})
        self._limit = limit_bytes
        self._kept_bytes = 0
        self._tables: dict[tuple[str, str, str], WeightTable] = {}

    def get(self, weight: str, fmt: TensorFormat, algorithm: str) -> WeightTable:
        """The table of one weight; rounded at most once while there is room."""
        if self._base is not None and self._base.holds(weight, self._value(weight)):
            return self._base.get(weight, fmt, algorithm)
        key = (weight, repr(fmt), algorithm)
        table = self._tables.get(key)
        if table is None:
            table = round_weight(
                self._value(weight), fmt, algorithm, self._scales, self._importance.get(weight)
            )
            size = table.values.numel() * table.values.element_size()
            if self._kept_bytes + size <= self._limit:
                self._tables[key] = table
                self._kept_bytes += size
        return table

    def holds(self, weight: str, value: torch.Tensor) -> bool:
        """Whether ``value`` is this graph's own weight, not one like it."""
        return self._value(weight) is value

    def _value(self, weight: str) -> torch.Tensor:
        value: torch.Tensor = attribute(self._graph.module, weight)
        return value
