"""Chooses the precision of every layer of a PyTorch model for given hardware, and proves it.

``advise`` makes a ``Plan``; the plan applies, compiles, reports and saves itself. Importing this
package loads neither torch nor optuna: each public name is imported when it is first used.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Final

from advisor.errors import (
    AdvisorError,
    BudgetError,
    CalibrationError,
    CaptureError,
    InfeasibleError,
    InputError,
    MissingDependencyError,
    ModelError,
    OutputError,
    PlanError,
    ProfileError,
    UnsupportedError,
    UsageError,
    VerificationError,
)

if TYPE_CHECKING:
    from advisor.api import advise
    from advisor.budget import Budget
    from advisor.plan import Plan
    from advisor.targets.base import Artifact

__version__ = "0.1.0"

__all__ = [
    "AdvisorError",
    "Artifact",
    "Budget",
    "BudgetError",
    "CalibrationError",
    "CaptureError",
    "InfeasibleError",
    "InputError",
    "MissingDependencyError",
    "ModelError",
    "OutputError",
    "Plan",
    "PlanError",
    "ProfileError",
    "UnsupportedError",
    "UsageError",
    "VerificationError",
    "__version__",
    "advise",
]

_LAZY: Final = {
    "Artifact": "advisor.targets.base",
    "Budget": "advisor.budget",
    "Plan": "advisor.plan",
    "advise": "advisor.api",
}

# A library stays silent until the application configures logging.
logging.getLogger("advisor").addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
