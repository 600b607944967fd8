"""The study's journal: opened, mended after a kill, and cleared of unfinished trials."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from advisor.errors import OutputError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage


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
        _drop_torn_line(path)
        # Symbolic links, the default lock, need a privilege on Windows.
        lock = JournalFileOpenLock(str(path)) if os.name == "nt" else None
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except OSError as error:
        raise OutputError(
            f"the search cannot keep its journal at {path}: {error.strerror or error}; choose a "
            f"folder that can be written, or run without a journal"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{path} is not a search journal ({error}); delete it or choose another path"
        ) from error


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


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line without its end: the process was killed while it wrote."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
