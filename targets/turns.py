"""Time whole models on this machine in turns, so that whatever slows it slows them alike.

A turn counts with the median of its runs, as users see them. What slowed a round as a whole is
found from all its turns (``level``) and taken out, and the median of a model's turns is kept. The
scale is a low quantile of the rounds: other load only ever adds. How a model is opened is the
runtime's own.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from statistics import median
from typing import Any, Final, TypeVar

import torch

from advisor.passes.graph import Graph
from advisor.targets.base import Part, Timing
from advisor.targets.idle import wait_until_idle
from advisor.targets.statistics import level

Source = TypeVar("Source")

LEAST_ROUNDS: Final = 4
ENOUGH_ROUNDS: Final = 40
"""Rounds after which timing ends as soon as the halves of every series agree."""

AGREEMENT: Final = 0.01
"""Relative difference of the halves of a series that is no longer worth waiting for."""

SLOW: Final = 2.5
"""A model this many times slower than the first is timed in the first rounds only."""

VISIT_S: Final = 12e-3
"""Runs of one visit to a model: as many as fit into this. The first dozen runs of a small network
after another model's turn took 2 to 10 % longer than the rest, in integers more than in floats."""

LONG_S: Final = 0.1
"""A run that takes as long needs none before it that does not count: what it finds in a cache is
little of what it reads (MiniLM at a batch of 8, LiteRT: 0.1 to 0.5 % longer)."""

SETTLE_S: Final = 2e-3
"""Pause before another model's turn where each has one thread, and none that spins."""

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
    """An open model with the seconds of its visits, one per round from the first on."""

    opened: Opened
    visits: list[float] = field(default_factory=list[float])

    def visit(self, threads: int | None) -> None:
        """One turn; its seconds are kept."""
        self.visits.append(take_turn(self.opened.run, threads))

    def close(self) -> None:
        """Let go of the model's memory; what was timed stays."""
        self.opened = replace(self.opened, run=_closed)


def take_turn(run: Callable[[], object], threads: int | None) -> float:
    """Median seconds of a few runs, after one that only warms caches where they are short.

    It begins when no thread of the process still spins. threads: of ``run``; None is all cores.
    """
    if threads == 1:
        time.sleep(SETTLE_S)
    else:
        wait_until_idle()
    # One thread works alone, and its own clock stops while other processes have the core.
    clock = time.thread_time if threads == 1 else time.perf_counter
    runs: list[float] = []
    is_warm = False
    while not runs or sum(runs) < VISIT_S:
        begin = clock()
        run()
        seconds = clock() - begin
        if is_warm or seconds >= LONG_S:
            runs.append(seconds)
        is_warm = True
    return median(runs)


def time_in_turns(
    builders: Sequence[Callable[[], Source]],
    open_model: Callable[[Source], Opened],
    *,
    threads: int | None,
    limit_s: float,
    say: Callable[[int, int], None],
) -> tuple[Timing, ...]:
    """Time of every model; the first is the reference that batches of models are aligned by.

    limit_s: of all turns, opening the models aside; exceeded only where ``LEAST_ROUNDS`` take
    longer. say: called with the models done and their number.
    """
    opened: list[_Model] = []
    pending = list(builders)
    relative: list[float] = []
    noise: list[float] = []
    scales: list[float] = []
    while pending:
        done = len(opened)
        room = MEMORY_SHARE * free_bytes()
        while pending and (len(opened) == done or room > 0):
            opened.append(_Model(opened=open_model(pending.pop(0)())))
            room -= OPEN_FACTOR * opened[-1].opened.file_bytes
            say(len(opened), len(builders))
        batch = opened[done:]
        if done:
            opened[0].visits.clear()
            batch.insert(0, opened[0])
        _take_turns(batch, threads, limit_s * (len(opened) - done) / len(builders))
        found = level([model.visits for model in batch])
        scales.append(found.seconds[0])
        fresh = slice(1 if done else 0, None)
        relative += [seconds / found.seconds[0] for seconds in found.seconds[fresh]]
        noise += found.noise[fresh]
        for model in opened[max(done, 1) :]:
            model.close()
    return tuple(
        _timing(model.opened, min(scales) * ratio, own)
        for model, ratio, own in zip(opened, relative, noise, strict=True)
    )


def _take_turns(models: Sequence[_Model], threads: int | None, limit_s: float) -> None:
    """Visit the models round after round; much slower ones than the first only as often as must.

    In another order each round: a machine that slows down while a round lasts, or what the model
    before left in the caches, would else always meet the same ones.
    """
    begin = time.monotonic()
    shuffle = random.Random(0).shuffle  # a fixed sequence, not a secret
    for turn in count():
        if turn >= LEAST_ROUNDS and time.monotonic() - begin > limit_s:
            return
        slow = SLOW * min(models[0].visits, default=float("inf"))
        quick = [model for model in models if turn < LEAST_ROUNDS or min(model.visits) <= slow]
        if turn >= ENOUGH_ROUNDS and max(level([m.visits for m in quick]).noise) <= AGREEMENT:
            return
        shuffle(quick)
        for model in quick:
            model.visit(threads)


def _timing(opened: Opened, seconds: float, noise: float) -> Timing:
    """Shares scaled to add up to the whole: telling the parts apart itself takes time."""
    total = sum(opened.shares.values())
    scale = seconds / total if total else 0.0
    return Timing(
        seconds=seconds,
        noise=noise,
        parts={part: own * scale for part, own in opened.shares.items()},
        partitions=opened.partitions,
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
