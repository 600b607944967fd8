"""Core AI's packages, loaded when they are needed, and where they exist."""

from __future__ import annotations

import platform
import sys
from typing import Any, Final

from advisor.errors import MissingDependencyError
from advisor.targets.packages import load_quietly, require_packages

TITLE: Final = "Core AI"
EXTRA: Final = "coreai"

SYSTEMS: Final = ("linux", "darwin")
"""Values of ``sys.platform`` that coreai-core 1.0.0b3 is published for
(https://pypi.org/project/coreai-core/1.0.0b3/#files)."""


def require(*names: str) -> None:
    """Check that Core AI exists for this system and that packages are importable.

    Raises:
        MissingDependencyError: names what is missing, and the command that installs it where
            one can.
    """
    if sys.platform not in SYSTEMS:
        raise MissingDependencyError(
            f"Core AI is published for Linux and macOS only, and this is {platform.system()}; "
            "compile there, or for another runtime: plan with advise(..., runtime='coreml')"
        )
    require_packages(TITLE, EXTRA, names)


def load(name: str) -> Any:
    """A module of Core AI.

    Raises:
        MissingDependencyError: it is not installed, or does not exist for this system.
    """
    if name not in sys.modules:
        require(name.partition(".")[0])
    return load_quietly(name, TITLE, EXTRA)
