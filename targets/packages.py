"""What a target needs installed, checked before it begins."""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import sys
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from advisor.errors import MissingDependencyError


def require_packages(title: str, extra: str, names: Sequence[str]) -> None:
    """Check that packages are importable. title: the target's. extra: what installs them.

    Raises:
        MissingDependencyError: names them and the command that installs them.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"the {title} target needs {', '.join(missing)}, not installed here; "
            f'run: pip install "quantadvisor[{extra}]"'
        )


def load_quietly(name: str, title: str, extra: str) -> Any:
    """A module that talks about itself at import, such as a converter without types.

    Raises:
        MissingDependencyError: it is not installed; names the command.
    """
    loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded
    require_packages(title, extra, (name.partition(".")[0],))
    with quiet():
        return importlib.import_module(name)


@contextmanager
def quiet() -> Generator[None]:
    """Silence a converter that talks about its own workings: progress, warnings, log lines."""
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
