"""coremltools, loaded when it is needed: it has no types, and talks about itself at import."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from typing import Any

from advisor.targets.packages import require_packages


def require(*names: str) -> None:
    """Check that packages are importable.

    Raises:
        MissingDependencyError: names them and the command that installs them.
    """
    require_packages("Core ML", "coreml", names)


def load(name: str) -> Any:
    """A module of coremltools.

    Raises:
        MissingDependencyError: it is not installed.
    """
    loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded
    require(name.partition(".")[0])
    with quiet():
        return import_module(name)


@contextmanager
def quiet() -> Generator[None]:
    """Silence coremltools: untested versions, missing Apple libraries, progress, log lines."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
