"""Statistics of repeated timings. Noise on a busy machine only ever adds, and adds rarely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

LOW: Final = 0.25
"""The quantile that stands for a series: robust against both a lucky run and a busy machine."""

POLISHES: Final = 10
"""Rounds of median polish; more change nothing that could be measured."""


def low_quantile(seconds: Sequence[float], share: float = LOW) -> float:
    """The time that ``share`` of the runs beat, interpolated between runs.

    Raises:
        ValueError: no runs.
    """
    if not len(seconds):
        raise ValueError("a series of timings needs at least one run")
    return float(np.quantile(np.asarray(seconds, dtype=np.float64), share))


def split_half_noise(seconds: Sequence[float], share: float = LOW) -> float:
    """How far the quantiles of every other run are apart, relative to their mean.

    What the same measurement would differ by if it were made again with half the runs. 0 for
    fewer than two runs, of which nothing can be said.
    """
    if len(seconds) < 2:
        return 0.0
    one, other = low_quantile(seconds[::2], share), low_quantile(seconds[1::2], share)
    return abs(one - other) / ((one + other) / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Levelled:
    """Seconds of every model in a round as quick as a low quantile of them.

    noise: how far the halves of its visits are apart, beside the other models' in the same rounds.
    slowed: by round, how many times longer it made a model's turn.
    """

    seconds: list[float]
    noise: list[float]
    slowed: list[float]


def level(visits: Sequence[Sequence[float]]) -> Levelled:
    """What every model takes, and what slowed whole rounds, told apart by median polish.

    In logarithms, model and round add up (Tukey, Exploratory Data Analysis, 1977, chapter 11).
    visits: seconds by model and round; a model may lack the last rounds. Of one model alone nothing
    can be told apart: a low quantile is its time.
    """
    if len(visits) == 1:
        seconds = low_quantile(visits[0])
        slowed = [visit / seconds for visit in visits[0]]
        return Levelled(seconds=[seconds], noise=[split_half_noise(visits[0])], slowed=slowed)
    rounds = max(map(len, visits))
    table = np.full((len(visits), rounds), np.nan)
    for row, own in zip(table, visits, strict=True):
        row[: len(own)] = own
    taken, slow = np.ones(len(visits)), np.ones(rounds)
    for _ in range(POLISHES):
        taken = _medians(table / slow, axis=1)
        slow = _medians(table / taken[:, None], axis=0)
    relative = table / taken[:, None]
    noise: list[float] = []
    for index, own in enumerate(visits):
        # By the other models: one that is itself the median of a round would show no noise in it.
        shared = min(len(own), max(len(each) for each in [*visits[:index], *visits[index + 1 :]]))
        others = _medians(np.delete(relative[:, :shared], index, axis=0), axis=0)
        alike = relative[index, :shared] / others
        noise.append(split_half_noise(alike.tolist(), share=0.5))
    scale = low_quantile(slow.tolist())
    return Levelled(seconds=(taken * scale).tolist(), noise=noise, slowed=(slow / scale).tolist())


def _medians(table: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Medians of what is there."""
    return np.asarray(np.nanmedian(table, axis=axis), dtype=np.float64)
