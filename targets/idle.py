"""Wait until this process is idle: a runtime's threads go on after its work is done.

ONNX Runtime's threads spin for 60 ms after a run before they sleep (measured, 1.31.1 on an AMD
EPYC; its loop counts to a million), and take cores from whatever is timed next: of two dozen open
models on two cores every other visit took twice as long. Forbidding them to spin would measure what
nobody deploys: a network of 40 microseconds on two threads took 60.
"""

from __future__ import annotations

from time import perf_counter, process_time, sleep, thread_time
from typing import Final

WINDOW_S: Final = 0.01
"""Longer than a tick of the system's clock (4 ms on most, 10 ms on some), which counts the time of
threads that run at the moment."""

IDLE: Final = 0.1
"""Share of a core that the other threads of an idle process may take."""

PATIENCE_S: Final = 0.5
"""A process whose other threads never rest (a user's own) is timed with them."""


def wait_until_idle() -> None:
    """Return when the other threads of this process take next to no processor time."""
    begin = perf_counter()
    while perf_counter() - begin < PATIENCE_S:
        started, before = perf_counter(), _others_s()
        sleep(WINDOW_S)
        if _others_s() - before < IDLE * (perf_counter() - started):
            return


def _others_s() -> float:
    """Processor time that all threads but this one took so far."""
    return process_time() - thread_time()
