"""The user's metric on a module: one number, higher is better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from advisor.errors import UsageError

Metric = Callable[[Any], Any]


def evaluate_metric(metric: Metric, module: torch.nn.Module) -> float:
    """The metric's value; the mean when it returns one value per example.

    Raises:
        UsageError: the result is no number or array of numbers, is empty, or is not finite.
    """
    with torch.no_grad():
        result = metric(module)
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
    return float(values.mean())
