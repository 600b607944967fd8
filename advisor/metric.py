"""The user's metric on a module: higher is better, with an interval where examples have values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from advisor.errors import AdvisorError, UsageError

FloatArray = npt.NDArray[np.float64]
Metric = Callable[[Any], Any]


RESAMPLES: Final = 4000
"""Bootstrap resamples of the examples."""

LEVEL: Final = 0.95


def evaluate_metric(metric: Metric, module: torch.nn.Module) -> float:
    """The metric's value; the mean when it returns one value per example.

    Raises:
        UsageError: the result is no number or array of numbers, is empty, or is not finite.
    """
    return float(metric_values(metric, module).mean())


def share_lost(original: float, now: float) -> float:
    """How much of a metric is gone, as a share of what it was; of 0, the plain difference."""
    return (original - now) / (abs(original) or 1.0)


def drop_interval(before: FloatArray, after: FloatArray) -> tuple[float, float] | None:
    """Interval of 95 % of the share of the metric that is lost, over the same examples.

    The bootstrap draws examples with what both models make of them, so that what is hard for both
    cancels (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13). None
    where there are no values per example to draw from. Always the same draws.

    Args:
        before, after: values per example, shape (examples,), of the float model and of the plan.
    """
    if before.size < 2 or before.shape != after.shape:
        return None
    rng = np.random.default_rng(0)
    lost = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        drawn = rng.integers(before.size, size=before.size)
        original = float(before[drawn].mean())
        lost[index] = share_lost(original, float(after[drawn].mean()))
    low, high = np.quantile(lost, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def say_drop(before: FloatArray, after: FloatArray) -> str:
    """The share lost and its interval, as part of a sentence; empty without values per example."""
    interval = drop_interval(before, after)
    if interval is None:
        return ""
    lost = share_lost(float(before.mean()), float(after.mean()))
    low, high = interval
    return (
        f"; a drop of {lost:.2%}, {LEVEL:.0%} interval {low:.2%} to {high:.2%} "
        f"over {before.size} examples"
    )


def metric_values(metric: Metric, module: torch.nn.Module) -> FloatArray:
    """The metric's values, flattened: one per example, or a single one.

    Raises:
        UsageError: the metric raised an error, or the result is no number or array of numbers, is
            empty, or is not finite.
    """
    try:
        with torch.no_grad():
            result = metric(module)
    except AdvisorError:
        raise
    except Exception as error:  # whatever a user's function may raise; it is the cause
        raise UsageError(
            f"metric raised {type(error).__name__}: {error}; it is called with the float model and "
            "with simulations of plans, as metric(module), and must take any of them"
        ) from error
    if isinstance(result, torch.Tensor):
        result = result.detach().cpu().double().numpy()
    if result is None:
        raise UsageError("metric returned nothing; return a float, or one number per example")
    try:
        values = np.asarray(result, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"metric returned {type(result).__name__}; return a float, or an array with one "
            "number per example"
        ) from error
    if not values.size or not bool(np.isfinite(values).all()):
        raise UsageError(
            f"metric returned {values.size} values, {int((~np.isfinite(values)).sum())} of them "
            "not finite; return finite numbers"
        )
    return values.ravel()
