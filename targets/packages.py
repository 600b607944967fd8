"""What a target needs installed, checked before it begins."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

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
