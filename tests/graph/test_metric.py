"""The interval of what a metric loses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from advisor.errors import UsageError
from advisor.metric import FloatArray, drop_interval, evaluate_metric, metric_values, say_drop


def test_the_interval_is_that_of_the_paired_bootstrap() -> None:
    rng = np.random.default_rng(1)
    before = (rng.random(300) < 0.9).astype(np.float64)
    after = np.where(rng.random(300) < 0.04, 1 - before, before)

    def lost(first: FloatArray, second: FloatArray, axis: int) -> FloatArray:
        share: FloatArray = (first.mean(axis) - second.mean(axis)) / first.mean(axis)
        return share

    reference = bootstrap(
        (before, after), lost, paired=True, method="percentile", n_resamples=20_000, rng=rng
    ).confidence_interval
    interval = drop_interval(before, after)
    assert interval is not None
    assert interval == pytest.approx((reference.low, reference.high), abs=4e-3)
    # Pairing matters: what both get wrong says nothing about the difference.
    shuffled = drop_interval(before, rng.permutation(after))
    assert shuffled is not None
    assert shuffled[1] - shuffled[0] > 1.5 * (interval[1] - interval[0])
    assert "over 300 examples" in say_drop(before, after)


def test_one_number_has_no_interval() -> None:
    assert drop_interval(np.array([0.9]), np.array([0.8])) is None
    assert say_drop(np.array([0.9]), np.array([0.8])) == ""
    assert drop_interval(np.ones(5), np.ones(6)) is None


def test_values_are_flat_and_finite() -> None:
    module = torch.nn.Identity()
    assert metric_values(lambda _: torch.ones(2, 3), module).shape == (6,)
    assert evaluate_metric(lambda _: [0.0, 1.0], module) == 0.5
    with pytest.raises(UsageError, match="not finite"):
        metric_values(lambda _: [float("nan")], module)
    with pytest.raises(UsageError, match="nothing"):
        metric_values(lambda _: None, module)
