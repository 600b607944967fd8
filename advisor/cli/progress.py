"""A progress bar on stderr, for people only: nothing is drawn where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Report = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done and the steps in all (0: not known)."""


@contextmanager
def show_progress(
    wanted: bool, *, console: Console | None = None, clock: Callable[[], float] = monotonic
) -> Generator[Report | None, None, None]:
    """A function to report steps to; None when ``wanted`` is false or stderr is no terminal.

    console: to draw on; None: stderr. clock: seconds, which the time left is reckoned by.
    """
    if not wanted or (console is None and not sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console as RichConsole
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        # By the speed of the last steps; a dash until two of them are done.
        TimeRemainingColumn(),
    )
    shown = console or RichConsole(stderr=True)
    with Progress(*columns, console=shown, transient=True, get_time=clock) as bar:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=None)
            bar.update(tasks[stage], completed=done, total=total or None)

        yield report
