"""Every error the product raises on purpose.

A message says three things: what was asked, what is possible (with numbers), and what to change.
Usage errors are also ``ValueError`` so that callers who only know the built-ins still catch them.
``exit_code`` is what the command line returns for the error.
"""


class AdvisorError(Exception):
    """Base of every error that quantadvisor raises on purpose."""

    exit_code = 2


class UsageError(AdvisorError, ValueError):
    """An argument cannot be used: unknown name, malformed value, wrong shape or type."""


class BudgetError(UsageError):
    """A budget that cannot be read: unknown unit, negative or missing number, unknown field."""


class InputError(UsageError):
    """Example inputs are missing, cannot be inferred, or do not fit the model."""


class CaptureError(AdvisorError):
    """``torch.export`` could not capture the model; names the module and the line."""


class CalibrationError(UsageError):
    """Calibration data is empty, not finite, or does not fit the model."""


class ModelError(UsageError):
    """The model itself cannot be planned: non-finite weights, nothing to quantize."""


class UnsupportedError(UsageError):
    """A scheme or operator that the chosen runtime does not support was demanded."""


class PlanError(UsageError):
    """A plan file is corrupt, of another schema, incomplete, or made for another model."""


class ProfileError(UsageError):
    """A hardware profile is unknown or malformed; names the field's path."""


class OutputError(AdvisorError, OSError):
    """A result could not be written; nothing half-written is left behind."""


class InfeasibleError(AdvisorError):
    """No plan meets the budget; the message names the smallest budget that works."""

    exit_code = 3


class MissingDependencyError(AdvisorError, ImportError):
    """A runtime or an optional package is missing; the message says how to install it."""

    exit_code = 4


class MissingEmitterError(MissingDependencyError):
    """The runtime is known and can be planned for, but nothing here writes its files yet."""


class VerificationError(AdvisorError):
    """An emitted artifact does not say or compute what the plan demands."""

    exit_code = 1
