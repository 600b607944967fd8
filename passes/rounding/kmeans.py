"""Lookup tables: the weights become indices into a few values, placed by k-means.

In one dimension clusters are intervals. The best ones of a few hundred cells are found exactly, by
dynamic programming (Wang and Song 2011, Ckmeans.1d.dp, The R Journal 3/2), and then settled on the
values themselves by Lloyd's algorithm (1982, Least Squares Quantization in PCM), of which a step
costs a binary search per cluster when the values are sorted and their sums kept. Weighing errors
by the mean square of what meets them, as SqueezeLLM does with the diagonal of the Fisher
information (Kim et al. 2023, arXiv:2306.07629), makes them the errors of the layer's output: worth
it where input channels differ in size, as after ReLU or LayerNorm's gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from advisor.formats import PerGroup, TensorFormat
from advisor.passes.graph import WeightTable

STEPS: Final = 30
"""Most steps of Lloyd's algorithm; it stops earlier when nothing moves."""

INT8_LARGEST: Final = 127

CELLS: Final = (256, 1024)
"""Fewest and most cells that the points are gathered into to find the starting clusters."""

STRIDE: Final = 64
"""Of the cells where a cluster may end, every how many are tried with every beginning."""

CELLS_EACH: Final = 8
"""Cells per cluster, between these bounds."""


def round_by_kmeans(
    weight: torch.Tensor,
    fmt: TensorFormat,
    importance: torch.Tensor | None,
    dtype: torch.dtype,
) -> WeightTable:
    """Indices and tables of least squared error.

    weight: (O, I, ...), float32. importance: of every input channel, (I,), or of a grouped
    convolution's channels, (groups * I,); None: all alike. dtype: of the table's entries, or of
    the scale of a table of integers. Every value gets the nearest entry of the rounded table.
    """
    shares = None if importance is None else _spread(weight, importance)
    count = len(weight)
    size = fmt.granularity.size if isinstance(fmt.granularity, PerGroup) else count
    tables: list[torch.Tensor] = []
    scales: list[torch.Tensor] = []
    indices = torch.empty(weight.shape, dtype=torch.uint8)
    for start in range(0, count, size):
        rows = slice(start, start + size)
        values = weight[rows].reshape(-1)
        found = find_centres(values, None if shares is None else shares[rows], 1 << fmt.bits)
        if fmt.table:
            scale = (found.abs().max() / INT8_LARGEST).clamp_min(torch.finfo(torch.float16).tiny)
            scale = scale.to(dtype).to(torch.float32)
            table = (found / scale).round().clamp(-INT8_LARGEST, INT8_LARGEST)
            centres = table * scale
            scales.append(scale)
            tables.append(table.to(torch.int8))
        else:
            centres = found.to(dtype).to(torch.float32)
            tables.append(centres)
        indices[rows] = nearest(values, centres).reshape(weight[rows].shape)
    return WeightTable(
        values=indices,
        table=torch.stack(tables),
        scale=torch.stack(scales) if scales else None,
    )


def find_centres(values: torch.Tensor, shares: torch.Tensor | None, count: int) -> torch.Tensor:
    """``count`` centres in rising order; fewer distinct ones where there are fewer values.

    values: (N,). shares: how much each error counts, (N,), None: all alike.
    """
    order = torch.sort(values.double())
    points = order.values
    masses = (
        torch.ones_like(points)
        if shares is None or not bool((shares > 0).any())
        else shares.reshape(-1).double()[order.indices]
    )
    line = _Line.of(points, masses)
    return _settle(line, _start(line, count)).float()


def nearest(values: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Index (uint8) of the nearest centre to every value; centres rise."""
    middles = (centres[1:] + centres[:-1]) / 2
    return torch.searchsorted(middles.contiguous(), values.contiguous()).to(torch.uint8)


@dataclass(frozen=True, slots=True)
class _Line:
    """Sorted points and the sums of mass, mass x point and mass x point² before each."""

    points: torch.Tensor
    mass: torch.Tensor
    moment: torch.Tensor
    square: torch.Tensor

    @classmethod
    def of(cls, points: torch.Tensor, masses: torch.Tensor) -> _Line:
        zero = points.new_zeros(1)

        def sums(values: torch.Tensor) -> torch.Tensor:
            return torch.cat([zero, values.cumsum(0)])

        return cls(points, sums(masses), sums(masses * points), sums(masses * points.square()))

    def cuts(self, centres: torch.Tensor) -> torch.Tensor:
        """Where the clusters of these centres begin and end among the points."""
        inner = torch.searchsorted(self.points, (centres[1:] + centres[:-1]) / 2)
        return torch.cat([inner.new_zeros(1), inner, inner.new_tensor([len(self.points)])])


def _settle(line: _Line, centres: torch.Tensor) -> torch.Tensor:
    for _ in range(STEPS):
        cuts = line.cuts(centres)
        mass = line.mass[cuts[1:]] - line.mass[cuts[:-1]]
        moment = line.moment[cuts[1:]] - line.moment[cuts[:-1]]
        moved = torch.where(mass > 0, moment / mass, centres).sort().values
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _start(line: _Line, count: int) -> torch.Tensor:
    """Centres of the best clusters of whole cells: exact, by dynamic programming over cells.

    Half of the cells hold equally many points and half are equally wide, so that neither the bulk
    nor outliers fall into few.
    """
    points = line.points
    cells = min(max(CELLS_EACH * count, CELLS[0]), CELLS[1]) // 2
    by_count = torch.linspace(0, len(points), cells + 1).long()
    edges = torch.linspace(float(points[0]), float(points[-1]), cells + 1, dtype=points.dtype)
    by_width = torch.searchsorted(points, edges[1:-1])
    joined: Any = torch.cat([by_count, by_width])  # torch does not annotate unique
    cuts: torch.Tensor = joined.unique()
    mass, moment, square = (sums[cuts] for sums in (line.mass, line.moment, line.square))
    # Row i, column j: squared error of one cluster from cut i to cut j.
    held = mass - mass[:, None]
    error = (square - square[:, None]) - (moment - moment[:, None]).square() / held
    error = torch.where(held > 0, error.clamp_min(0.0), 0.0)
    error.masked_fill_(torch.ones_like(error, dtype=torch.bool).tril(-1), float("inf"))
    stops = torch.tensor(best_stops(error.numpy(), count))
    starts = torch.cat([stops.new_zeros(1), stops[:-1]])
    weighed, total = mass[stops] - mass[starts], moment[stops] - moment[starts]
    nowhere = points[cuts[starts].clamp(max=len(points) - 1)]
    return torch.where(weighed > 0, total / weighed, nowhere).sort().values


def best_stops(error: NDArray[np.float64], count: int) -> list[int]:
    """The cuts at which ``count`` clusters of the least total error end.

    error: of one cluster from cut i to cut j. The last cluster of the best ones begins no earlier
    the later it ends, so that columns between two need only be tried from where those begin.
    """
    size = len(error)
    anchors = np.append(np.arange(0, size - 1, STRIDE), size - 1)
    at_anchors = np.ascontiguousarray(error[:, anchors].T)
    least, came_from = error[0], list[NDArray[np.intp]]()
    for _ in range(count - 1):
        before, least, origin = least, np.empty(size), np.empty(size, dtype=np.intp)
        origins = (at_anchors + before).argmin(axis=1)
        for (start, stop), (low, high) in zip(pairwise(anchors), pairwise(origins), strict=True):
            tried = before[low : high + 1, None] + error[low : high + 1, start : stop + 1]
            origin[start : stop + 1] = chosen = tried.argmin(axis=0)
            least[start : stop + 1] = tried[chosen, np.arange(len(chosen))]
            origin[start : stop + 1] += low
        came_from.append(origin)
    ends = [size - 1]
    for origin in reversed(came_from):
        ends.append(int(origin[ends[-1]]))
    return ends[::-1]


def _spread(weight: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
    """The importance of every weight; a grouped convolution's rows read their own channels."""
    inputs = weight.shape[1]
    by_group = importance.reshape(-1, inputs)
    rows = by_group.repeat_interleave(len(weight) // len(by_group), dim=0)
    return rows.reshape(len(weight), inputs, *[1] * (weight.ndim - 2)).expand(weight.shape)
