"""Statistics of timings and the fit of costs, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from advisor.measure.fit import Prior, fit
from advisor.targets.statistics import low_quantile, split_half_noise


def test_low_quantile_interpolates_between_runs() -> None:
    assert low_quantile([1.0, 2.0]) == pytest.approx(1.25)
    assert low_quantile([5.0, 1.0, 3.0], share=0.5) == 3.0
    assert low_quantile([7.0]) == 7.0


def test_low_quantile_ignores_a_busy_machine() -> None:
    quiet = [1.0 + 0.001 * i for i in range(20)]
    assert low_quantile([*quiet, *[50.0] * 15]) == pytest.approx(low_quantile(quiet), rel=0.01)


def test_low_quantile_needs_a_run() -> None:
    with pytest.raises(ValueError, match="at least one"):
        low_quantile([])


def test_split_half_noise_compares_every_other_run() -> None:
    assert split_half_noise([1.0, 3.0, 1.0, 3.0]) == pytest.approx(1.0)  # |1 - 3| / 2
    assert split_half_noise([2.0] * 6) == 0.0
    assert split_half_noise([2.0]) == 0.0


def prior(mean: list[float], deviation: list[float]) -> Prior:
    return Prior(
        mean=np.array(mean), deviation=np.array(deviation), shared=np.zeros((len(mean), 1))
    )


def test_fit_solves_sums_when_the_prior_is_vague() -> None:
    rows = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    truth = np.array([3.0, 2.0, 5.0])
    found = fit(rows, rows @ truth, 0.001, prior([0.0] * 3, [1e4] * 3))
    np.testing.assert_allclose(found, truth, rtol=1e-4)


def test_fit_keeps_the_prior_where_no_sum_says_more() -> None:
    rows = np.array([[1.0, 1.0, 0.0]])
    found = fit(rows, np.array([3.0]), 0.01, prior([1.0, 2.0, 7.0], [1.0, 1.0, 1.0]))
    np.testing.assert_allclose(found, [1.0, 2.0, 7.0])


def test_fit_splits_a_surplus_by_variance() -> None:
    """With one exact sum the correction of each term is proportional to its variance."""
    found = fit(np.array([[1.0, 1.0]]), np.array([8.0]), 1e-6, prior([1.0, 2.0], [1.0, 2.0]))
    np.testing.assert_allclose(found, [1.0 + 5.0 / 5, 2.0 + 5.0 * 4 / 5], rtol=1e-6)


def test_fit_moves_shared_errors_together() -> None:
    rows = np.array([[1.0, 1.0, 0.0]])
    held = Prior(
        mean=np.array([1.0, 1.0, 1.0]),
        deviation=np.full(3, 1e-6),
        shared=np.array([[1.0], [1.0], [1.0]]),
    )
    np.testing.assert_allclose(fit(rows, np.array([4.0]), 1e-4, held), [2.0] * 3, rtol=1e-3)
