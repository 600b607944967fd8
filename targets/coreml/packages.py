"""coremltools, loaded when it is needed: it has no types, and talks about itself at import."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from advisor.targets.packages import quiet, require_packages


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
