"""coremltools, loaded when it is needed: it has no types, and talks about itself at import."""

from __future__ import annotations

from typing import Any

from advisor.targets.packages import load_quietly, require_packages


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
    return load_quietly(name, "Core ML", "coreml")
