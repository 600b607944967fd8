"""The packages of this target, loaded when they are needed: none of them has types."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from advisor.targets.packages import require_packages


def require(*names: str) -> None:
    """Check that packages are importable.

    Raises:
        MissingDependencyError: names them and the command that installs them.
    """
    require_packages("LiteRT (TFLite)", "tflite", names)


def load(name: str) -> Any:
    """A module of these packages.

    Raises:
        MissingDependencyError: its package is not installed.
    """
    require(name.partition(".")[0])
    return import_module(name)
