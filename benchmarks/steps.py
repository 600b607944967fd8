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
    """What one step took. before_bytes: what the process held when it began."""

    name: str
    seconds: float
    before_bytes: int
    peak_bytes: int


@contextmanager
def step(name: str, steps: list[Step]) -> Generator[None]:
    """Append what the body took."""
    restart_peak()
    before, begin = resident_bytes(), time.perf_counter()
    yield
    seconds = time.perf_counter() - begin
    steps.append(Step(name=name, seconds=seconds, before_bytes=before, peak_bytes=peak_bytes()))
    print(f"{name}: {seconds:.1f} s, peak {peak_bytes() / 1e9:.2f} GB", file=sys.stderr)
