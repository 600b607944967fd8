"""Time whole models on ONNX Runtime, and split each one's time over its parts.

Its own profiler tells how long every node took in a few runs before the model is timed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from advisor.passes.graph import QuantizedGraph
from advisor.targets.base import Part, Timing
from advisor.targets.idle import wait_until_idle
from advisor.targets.onnxruntime.export import export_onnx
from advisor.targets.onnxruntime.manifest import MODEL_FILE, SESSION_ENTRIES
from advisor.targets.onnxruntime.onnxfile import sizes_of, write_model
from advisor.targets.onnxruntime.profiling import owners_of, parts_of, read_nodes
from advisor.targets.onnxruntime.session import open_session
from advisor.targets.turns import Opened, feed_of, time_in_turns

PROFILED_RUNS: Final = 8
PROFILED_S: Final = 0.5


def time_models(
    builders: Sequence[Callable[[], QuantizedGraph]],
    inputs: Sequence[Any],
    *,
    threads: int | None,
    limit_s: float,
    with_parts: bool,
    say: Callable[[int, int], None],
) -> tuple[Timing, ...]:
    """Time of every model; arguments as ``advisor.targets.base.Stopwatch``.

    Raises:
        UnsupportedError: a layer has a form no kernel of ONNX Runtime takes.
    """
    return time_in_turns(
        builders,
        partial(_open, inputs=inputs, threads=threads, with_parts=with_parts),
        threads=threads,
        limit_s=limit_s,
        say=say,
    )


def _open(
    graph: QuantizedGraph, inputs: Sequence[Any], threads: int | None, with_parts: bool
) -> Opened:
    model = export_onnx(graph)
    names = {value.name for value in model.graph.inputs}
    feed = feed_of(graph.float_graph, inputs)
    own = {name: array for name, array in feed.items() if name in names}
    sizes = sizes_of(model, own)
    owners = owners_of(model, graph) if with_parts else {}
    with tempfile.TemporaryDirectory(prefix="advisor-") as folder:
        path = Path(folder) / MODEL_FILE
        write_model(model, path)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        del model
        session = open_session(
            path,
            SESSION_ENTRIES,
            threads=threads,
            dimensions=sizes,
            profile=Path(folder) / "profile" if with_parts else None,
        )
        shares: Mapping[Part, float] = {}
        if with_parts:
            wait_until_idle()
            begin, runs = time.monotonic(), 0
            while runs < PROFILED_RUNS and (runs < 3 or time.monotonic() - begin < PROFILED_S):
                session.run(None, own)
                runs += 1
            shares = parts_of(read_nodes(Path(session.end_profiling()), runs), owners)
    return Opened(run=partial(session.run, None, own), file_bytes=size, shares=shares)
