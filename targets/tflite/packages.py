"""The packages of this target, loaded when they are needed: none of them has types."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from advisor.errors import MissingDependencyError

INSTALL: Final = 'pip install "quantadvisor[tflite]"'


def require(*names: str) -> None:
    """Check that packages are importable.

    Raises:
        MissingDependencyError: names them and the command that installs them.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"the LiteRT (TFLite) target needs {', '.join(missing)}, not installed here; "
            f"run: {INSTALL}"
        )


def load(name: str) -> Any:
    """A module of these packages.

    Raises:
        MissingDependencyError: its package is not installed.
    """
    require(name.partition(".")[0])
    return import_module(name)
