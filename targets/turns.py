"""Time whole models on this machine in turns, so that whatever slows it slows them alike.

A turn counts with the median of its runs, as users see them. Of the first model's turns a low
quantile is kept: other load only ever adds. The others are known by their ratio to it in the same
round, whose median is kept. How a model is opened is the runtime's own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from statistics import median
from typing import Any, Final, TypeVar

import torch

from advisor.passes.graph import Graph
from advisor.targets.base import Part, Timing
from advisor.targets.statistics import SETTLE_S, low_quantile, split_half_noise

Source = TypeVar("Source")

LEAST_ROUNDS: Final = 3
ENOUGH_ROUNDS: Final = 40
"""Rounds after which timing ends as soon as the halves of every series agree."""

AGREEMENT: Final = 0.01
"""Relative difference of the halves of a series that is no longer worth waiting for."""

SLOW: Final = 2.5
"""A model this many times slower than the first is timed in the first rounds only."""

VISIT_S: Final = 12e-3
"""Runs of one visit to a model: as many as fit into this. The first dozen runs of a small network
after another model's turn took 2 to 10 % longer than the rest, in integers more than in floats."""

MEMORY_SHARE: Final = 0.3
"""Share of the free memory that open models may take; more models are timed in batches."""

OPEN_FACTOR: Final = 2.5
"""Bytes of an open model over those of its file: weights are kept, and again packed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model ready to run. run: one forward on the same inputs each time.

    shares: of its time by part, in any unit; none where they were not asked for. partitions: see
    ``Timing``.
    """

    run: Callable[[], object]
    file_bytes: int
    shares: Mapping[Part, float] = field(default_factory=dict[Part, float])
    partitions: int | None = None


@dataclass(slots=True, kw_only=True)
class _Model:
    """An open model with what was timed so far: seconds by round, and over the first model's."""

    opened: Opened
    clock: Callable[[], float]
    seconds: list[float] = field(default_factory=list[float])
    ratios: list[float] = field(default_factory=list[float])

    def visit(self, first: _Model) -> None:
        """One warming run and a few timed ones, whose median counts. first: visited before."""
        time.sleep(SETTLE_S)
        self.opened.run()
        runs: list[float] = []
        while not runs or sum(runs) < VISIT_S:
            begin = self.clock()
            self.opened.run()
            runs.append(self.clock() - begin)
        self.seconds.append(median(runs))
        self.ratios.append(self.seconds[-1] / first.seconds[-1])

    @property
    def noise(self) -> float:
        """How far the halves of what counts are apart."""
        if set(self.ratios) == {1.0}:  # the first model
            return split_half_noise(self.seconds)
        return split_half_noise(self.ratios, share=0.5)

    def close(self) -> None:
        """Let go of the model's memory; what was timed stays."""
        self.opened = replace(self.opened, run=_closed)


def time_in_turns(
    builders: Sequence[Callable[[], Source]],
    open_model: Callable[[Source], Opened],
    *,
    threads: int | None,
    limit_s: float,
    say: Callable[[int, int], None],
) -> tuple[Timing, ...]:
    """Time of every model; the first is the reference that batches of models are aligned by.

    limit_s: of the whole call; exceeded only where ``LEAST_ROUNDS`` take longer. say: called with
    the models done and their number.
    """
    deadline = time.monotonic() + limit_s
    # One thread works alone, and its own clock stops while other processes have the core.
    clock = time.thread_time if threads == 1 else time.perf_counter
    found: dict[int, _Model] = {}
    first: _Model | None = None
    ratios: dict[int, float] = {}
    reference_s: list[float] = []
    pending = list(range(len(builders)))
    while pending:
        begin = time.monotonic()
        batch: list[_Model] = []
        room = MEMORY_SHARE * free_bytes()
        while pending and (not batch or room > 0):
            index = pending.pop(0)
            found[index] = _Model(opened=open_model(builders[index]()), clock=clock)
            room -= OPEN_FACTOR * found[index].opened.file_bytes
            batch.append(found[index])
            say(index + 1, len(builders))
        if first is None:
            first = batch[0]
        elif first not in batch:
            batch.insert(0, first)
            first.seconds.clear()
            first.ratios.clear()
        # Later batches have to be opened and timed too.
        now = time.monotonic()
        opening = (now - begin) * len(pending) / len(batch)
        share = len(batch) / (len(batch) + len(pending))
        _take_turns(batch, (deadline - now - opening) * share)
        reference_s.append(low_quantile(first.seconds))
        for index, model in found.items():
            if index not in ratios:
                ratios[index] = median(model.ratios)
                if model is not first:
                    model.close()
    best = min(reference_s)
    return tuple(_timing(found[index], best * ratios[index]) for index in range(len(builders)))


def _take_turns(models: Sequence[_Model], limit_s: float) -> None:
    """Visit the models round after round; much slower ones than the first only as often as must."""
    begin = time.monotonic()
    for turn in count():
        if turn >= LEAST_ROUNDS and time.monotonic() - begin > limit_s:
            return
        slow = SLOW * min(models[0].seconds, default=float("inf"))
        quick = [model for model in models if turn < LEAST_ROUNDS or min(model.seconds) <= slow]
        agree = all(model.noise <= AGREEMENT for model in quick)
        if turn >= ENOUGH_ROUNDS and agree:
            return
        for model in quick:  # the first is always among them
            model.visit(models[0])


def _timing(model: _Model, seconds: float) -> Timing:
    """Shares scaled to add up to the whole: telling the parts apart itself takes time."""
    shares = model.opened.shares
    total = sum(shares.values())
    scale = seconds / total if total else 0.0
    return Timing(
        seconds=seconds,
        noise=model.noise,
        parts={part: own * scale for part, own in shares.items()},
        partitions=model.opened.partitions,
    )


def _closed() -> None:
    raise RuntimeError("the model was closed after it was timed")


def free_bytes() -> float:
    """Memory that nothing uses; 4 GB where the system does not say."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not a POSIX system, or the name is unknown
        return 4e9


def feed_of(graph: Graph, flat: Sequence[Any]) -> dict[str, Any]:
    """Arrays by input name from one value per placeholder of the graph."""
    return {
        name: value.detach().cpu().numpy()
        for name, value in zip(graph.input_names, flat, strict=True)
        if isinstance(value, torch.Tensor)
    }
