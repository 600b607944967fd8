"""Measurements kept in a folder, so that none is made twice and several processes share them.

Every process that plans the same from the same data asks for the same measurements in the same
order. Each takes one that nobody is making, under a lock that the system frees when its process
dies, and reads what the others found; all end with the same plan.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from advisor.atomic import write_text
from advisor.errors import OutputError
from advisor.search.problem import Choice, Knobs, Problem

Report = Callable[[float], None]
"""Called while a plan is measured, with the least that its divergence can still be; raises
``Abandoned`` when that is enough to know that the plan cannot win."""


class Abandoned(Exception):
    """A measurement that was ended early: the divergence is ``at_least`` that."""

    def __init__(self, at_least: float) -> None:
        super().__init__(f"the divergence is at least {at_least:g}")
        self.at_least = at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Divergence of a plan on all calibration samples, and on the held-out ones alone."""

    divergence: float
    held_out: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a measurement gave. value: the divergence that was asked for. held_out: that of the
    held-out samples, where both are of interest. is_whole: False where it was abandoned, at a
    divergence of at least ``value``."""

    value: float
    held_out: float | None = None
    is_whole: bool = True


Job = Callable[[], Outcome]


def plan_name(problem: Problem, choice: Choice, knobs: Knobs, samples: str) -> str:
    """What one measurement is called: the plan by what its numbers stand for, and its samples."""
    what = hashlib.sha256(repr((problem.groups, problem.candidates)).encode()).hexdigest()[:16]
    return (
        f"{samples}:{what}:{','.join(map(str, choice))}:{json.dumps(dict(knobs), sort_keys=True)}"
    )


def spell(value: float | None) -> float | str | None:
    """For JSON, which has no word for what is not finite; ``float`` reads it back."""
    return value if value is None or math.isfinite(value) else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """folder: made when it is needed; None: nothing is kept."""

    folder: Path | None = None

    def get(self, wanted: str, jobs: Mapping[str, Job]) -> Outcome:
        """The outcome of one of ``jobs``; while another process makes it, others of them are made.

        Raises:
            OutputError: the folder cannot be written or holds something else.
        """
        if self.folder is None:
            return jobs[wanted]()
        while True:
            known = self._read(wanted)
            if known is not None:
                return known
            for name in (wanted, *jobs):
                if self._read(name) is None and self._make(name, jobs[name], wait_s=0):
                    break
            else:
                self._make(wanted, jobs[wanted], wait_s=-1)

    def replace(self, name: str, job: Job) -> Outcome:
        """Make a measurement again, and keep what it gives now."""
        outcome = job()
        if self.folder is not None:
            self._write(name, outcome)
        return outcome

    def _make(self, name: str, job: Job, *, wait_s: float) -> bool:
        """Whether this process could take it. wait_s: for the lock; -1: as long as it takes."""
        with self._claim(name, wait_s) as is_ours:
            if is_ours and self._read(name) is None:
                self._write(name, job())
        return is_ours

    @contextmanager
    def _claim(self, name: str, wait_s: float) -> Generator[bool]:
        from filelock import FileLock, Timeout

        lock = self._path(name).with_suffix(".lock")
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            held = FileLock(lock)
            held.acquire(timeout=wait_s)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise OutputError(
                f"cannot write {lock.parent}: {error.strerror or error}; choose a folder that you "
                f"can write to, or run without a cache"
            ) from error
        try:
            yield True
        finally:
            if self._path(name).exists():
                # Whoever waits for this lock finds the outcome; who comes later needs no lock.
                with suppress(OSError):
                    lock.unlink()
            held.release()

    def _read(self, name: str) -> Outcome | None:
        path = self._path(name)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            held_out = found["held_out"]
            return Outcome(
                value=float(found["divergence"]),
                held_out=None if held_out is None else float(held_out),
                is_whole=bool(found["is_whole"]),
            )
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{path} is not a measurement ({error}); delete it") from error

    def _write(self, name: str, outcome: Outcome) -> None:
        record = {
            "of": name,
            "divergence": spell(outcome.value),
            "held_out": spell(outcome.held_out),
            "is_whole": outcome.is_whole,
        }
        write_text(self._path(name), json.dumps(record) + "\n")

    def _path(self, name: str) -> Path:
        assert self.folder is not None  # callers have returned before
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"
