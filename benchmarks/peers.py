"""What other tools make of a float model, one process per method.

Whatever a tool does (an exception of any kind, a crash) becomes a recorded failure and never ends
the comparison.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

TIMEOUT_S: Final = 600
LONGEST_MESSAGE: Final = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A file that a tool wrote, or the reason why there is none."""

    method: str
    path: Path
    failure: str | None


def make_peer(program: str, method: str, source: Path, calibration: Path, path: Path) -> Peer:
    """Run one method in its own process; an existing file is kept.

    program: the module that runs it. source: the float model. calibration: an .npz that
    ``save_feeds`` wrote.
    """
    if path.exists():
        return Peer(method=method, path=path, failure=None)
    command = [
        sys.executable,
        "-m",
        program,
        method,
        str(source),
        str(calibration),
        str(path),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Peer(method=method, path=path, failure=f"no result after {TIMEOUT_S} s")
    if done.returncode == 0:
        return Peer(method=method, path=path, failure=None)
    path.unlink(missing_ok=True)
    said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return Peer(method=method, path=path, failure=said[-1][-LONGEST_MESSAGE:])


def save_feeds(feeds: list[dict[str, np.ndarray[Any, Any]]], path: Path) -> None:
    """Write calibration inputs, keyed by number and input name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"{i}/{name}": value for i, feed in enumerate(feeds) for name, value in feed.items()}
    np.savez(path, allow_pickle=False, **arrays)


def load_feeds(path: Path) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Read what ``save_feeds`` wrote, in order."""
    feeds: dict[int, dict[str, np.ndarray[Any, Any]]] = {}
    with np.load(path) as stored:
        for key in stored.files:
            number, _, name = key.partition("/")
            feeds.setdefault(int(number), {})[name] = stored[key]
    return [feeds[number] for number in sorted(feeds)]
