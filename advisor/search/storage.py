"""The study's journal: opened, mended after a kill, and cleared of unfinished trials."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from advisor.errors import OutputError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

logger = logging.getLogger("advisor")


def open_storage(path: Path | None) -> BaseStorage:
    """The journal at ``path`` (made if absent, with its folder), or one in memory.

    Raises:
        OutputError: the file cannot be written, or is not a journal.
    """
    from optuna.storages import InMemoryStorage, JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    if path is None:
        return InMemoryStorage()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _mend(path)
        # Symbolic links, the default lock, need a privilege on Windows.
        lock = JournalFileOpenLock(str(path)) if os.name == "nt" else None
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except OSError as error:
        raise _unwritable(path, error) from error


@contextmanager
def sole_writer(path: Path | None) -> Generator[Path | None]:
    """``path`` while no other process writes that journal; None, and no journal, while one does.

    Raises:
        OutputError: the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    if path is None:
        yield None
        return
    lock = FileLock(path.with_name(f"{path.name}.writer"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process writes %s; this one makes the same search beside it", path)
        yield None
        return
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield path
    finally:
        lock.release()


def fail_unfinished(study: Study) -> None:
    """Mark trials that a killed process left waiting or running as failed.

    The sampler ignores failed trials, so each is made again from the same seed and history.
    """
    from optuna.trial import TrialState

    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    for _ in waiting:
        study.ask()  # takes the oldest waiting trial
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"the search cannot keep its journal at {path}: {error.strerror or error}; choose a "
        f"folder that can be written, or run without a journal"
    )


def _mend(path: Path) -> None:
    """Cut off a last line without its end: the process was killed while it wrote."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    lines = content[:whole].splitlines()
    is_torn_first = not lines and content.startswith(b'{"op_code"')
    if not all(map(_is_entry, lines)) or (content and not lines and not is_torn_first):
        raise OutputError(
            f"{path} is not a search journal, or is damaged; delete it or choose another path"
        )
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def _is_entry(line: bytes) -> bool:
    try:
        entry: object = json.loads(line)
    except ValueError:
        return False
    return isinstance(entry, dict) and "op_code" in entry
