"""What the steps of a long job take: seconds and the most memory of the process."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from advisor.targets.resident import peak_bytes, resident_bytes, restart_peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step took. cpu_s: seconds of processors, which other programs do not lengthen.

    before_bytes: what the process held when it began.
    """

    name: str
    seconds: float
    cpu_s: float
    before_bytes: int
    peak_bytes: int


@contextmanager
def step(name: str, steps: list[Step]) -> Generator[None]:
    """Append what the body took."""
    restart_peak()
    before, begin, busy = resident_bytes(), time.perf_counter(), time.process_time()
    yield
    found = Step(
        name=name,
        seconds=time.perf_counter() - begin,
        cpu_s=time.process_time() - busy,
        before_bytes=before,
        peak_bytes=peak_bytes(),
    )
    steps.append(found)
    print(
        f"{name}: {found.seconds:.1f} s ({found.cpu_s:.1f} s of processor), "
        f"peak {found.peak_bytes / 1e9:.2f} GB",
        file=sys.stderr,
    )
