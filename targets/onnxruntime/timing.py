"""Time whole models on this machine, and split each one's time over its parts.

The models of one call are timed in turns, so that whatever slows the machine slows them alike. A
turn counts with the median of its runs, as users see them, and of the turns a low quantile is kept:
other load only ever adds. ONNX Runtime's own profiler tells how long every node took in a few runs
of the same session before that.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch

from advisor.passes.graph import Graph, QuantizedGraph
from advisor.targets.base import Timing
from advisor.targets.onnxruntime.export import export_onnx
from advisor.targets.onnxruntime.manifest import MODEL_FILE, SESSION_ENTRIES
from advisor.targets.onnxruntime.onnxfile import write_model
from advisor.targets.onnxruntime.profiling import owners_of, parts_of, read_nodes
from advisor.targets.onnxruntime.session import Session, open_session
from advisor.targets.statistics import low_quantile, split_half_noise

Array = np.ndarray[Any, Any]

PROFILED_RUNS: Final = 8
PROFILED_S: Final = 0.5
LEAST_ROUNDS: Final = 3
ENOUGH_ROUNDS: Final = 40
"""Rounds after which timing ends as soon as the halves of every series agree."""

AGREEMENT: Final = 0.01
"""Relative difference of the halves of a series that is no longer worth waiting for."""

SLOW: Final = 2.5
"""A model this many times slower than the first is timed in the first rounds only."""

VISIT_S: Final = 12e-3
"""Runs of one visit to a session: as many as fit into this, at most ``VISIT_RUNS``."""

VISIT_RUNS: Final = 24
MEMORY_SHARE: Final = 0.3
"""Share of the free memory that open sessions may take; more models are timed in batches."""

SESSION_FACTOR: Final = 2.5
"""Bytes of an open session over those of its file: weights are kept, and again packed."""

NO_SPINNING: Final = {"session.force_spinning_stop": "1"}
"""Idle threads of one session must not take cores from the next one's."""


@dataclass(slots=True, kw_only=True)
class _Model:
    """One open session with what was timed so far."""

    session: Session
    feed: dict[str, Array]
    file_bytes: int
    nodes: Mapping[tuple[str, str], float]
    clock: Callable[[], float]
    seconds: list[float] = field(default_factory=list[float])

    def visit(self) -> None:
        """One warming run and a few timed ones, whose median counts."""
        self.session.run(None, self.feed)
        runs: list[float] = []
        while not runs or (sum(runs) < VISIT_S and len(runs) < VISIT_RUNS):
            begin = self.clock()
            self.session.run(None, self.feed)
            runs.append(self.clock() - begin)
        self.seconds.append(median(runs))


def time_models(
    builders: Sequence[Callable[[], QuantizedGraph]],
    inputs: Sequence[Any],
    *,
    threads: int | None,
    limit_s: float,
    with_parts: bool,
    say: Callable[[int, int], None],
) -> tuple[Timing, ...]:
    """Time of every model; the first is the reference that batches of models are aligned by.

    inputs: one value per placeholder of the graph. limit_s: of the whole call; exceeded only
    where ``LEAST_ROUNDS`` take longer. with_parts: also split each model's time. say: called with
    the models done and their number.

    Raises:
        UnsupportedError: a layer has a form no kernel of ONNX Runtime takes.
    """
    deadline = time.monotonic() + limit_s
    found: dict[int, _Model] = {}
    first: _Model | None = None
    ratios: dict[int, float] = {}
    reference_s: list[float] = []
    pending = list(range(len(builders)))
    while pending:
        begin = time.monotonic()
        batch: list[_Model] = []
        room = MEMORY_SHARE * _free_bytes()
        while pending and (not batch or room > 0):
            index = pending.pop(0)
            found[index] = _open(builders[index](), inputs, threads, with_parts)
            room -= SESSION_FACTOR * found[index].file_bytes
            batch.append(found[index])
            say(index + 1, len(builders))
        if first is None:
            first = batch[0]
        elif first not in batch:
            batch.insert(0, first)
            first.seconds.clear()
        # Later batches have to be opened and timed too.
        now = time.monotonic()
        opening = (now - begin) * len(pending) / len(batch)
        share = len(batch) / (len(batch) + len(pending))
        _take_turns(batch, (deadline - now - opening) * share)
        reference_s.append(low_quantile(first.seconds))
        for index, model in found.items():
            if index not in ratios:
                ratios[index] = low_quantile(model.seconds) / reference_s[-1]
                model.session = first.session  # lets go of its memory
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
        agree = all(split_half_noise(model.seconds) <= AGREEMENT for model in quick)
        if turn >= ENOUGH_ROUNDS and agree:
            return
        for model in quick:
            model.visit()


def _open(
    graph: QuantizedGraph, inputs: Sequence[Any], threads: int | None, with_parts: bool
) -> _Model:
    model = export_onnx(graph)
    names = {value.name for value in model.graph.inputs}
    feed = feed_of(graph.float_graph, inputs)
    own = {name: array for name, array in feed.items() if name in names}
    owners = owners_of(model, graph) if with_parts else {}
    with tempfile.TemporaryDirectory(prefix="advisor-") as folder:
        path = Path(folder) / MODEL_FILE
        write_model(model, path)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        del model
        session = open_session(
            path,
            {**SESSION_ENTRIES, **NO_SPINNING},
            threads=threads,
            profile=Path(folder) / "profile" if with_parts else None,
        )
        nodes: Mapping[tuple[str, str], float] = {}
        if with_parts:
            begin, runs = time.monotonic(), 0
            while runs < PROFILED_RUNS and (runs < 3 or time.monotonic() - begin < PROFILED_S):
                session.run(None, own)
                runs += 1
            nodes = parts_of(read_nodes(Path(session.end_profiling()), runs), owners)
    # One thread works alone, and its own clock stops while other processes have the core.
    clock = time.thread_time if threads == 1 else time.perf_counter
    return _Model(session=session, feed=own, file_bytes=size, nodes=nodes, clock=clock)


def _timing(model: _Model, seconds: float) -> Timing:
    """Parts scaled to add up to the whole: the profiler itself takes time at every node."""
    total = sum(model.nodes.values())
    scale = seconds / total if total else 0.0
    return Timing(
        seconds=seconds,
        noise=split_half_noise(model.seconds),
        parts={part: own * scale for part, own in model.nodes.items()},
    )


def _free_bytes() -> float:
    """Memory that nothing uses; 4 GB where the system does not say."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not a POSIX system, or the name is unknown
        return 4e9


def feed_of(graph: Graph, flat: Sequence[Any]) -> dict[str, Array]:
    """Arrays by input name from one value per placeholder of the graph."""
    return {
        name: value.detach().cpu().numpy()
        for name, value in zip(graph.input_names, flat, strict=True)
        if isinstance(value, torch.Tensor)
    }
