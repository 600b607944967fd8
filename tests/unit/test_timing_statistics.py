"""Statistics of timings and the fit of costs, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from advisor.measure.fit import Prior, fit
from advisor.targets.statistics import level, low_quantile, split_half_noise


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


def test_models_and_slow_rounds_are_told_apart() -> None:
    """Every time is a product of a model and a round; one visit in eight is disturbed besides."""
    rng = np.random.default_rng(0)
    models, rounds = np.array([1.0, 3.0, 0.5, 2.0, 1.1]), np.repeat([1.0, 1.6], 12)
    table = models[:, None] * rng.permutation(rounds)
    table[rng.random(table.shape) < 1 / 8] *= 2
    found = level(table.tolist())
    assert found.seconds == pytest.approx(models.tolist())
    assert max(found.noise) < 0.01


@pytest.mark.parametrize("models", [2, 3, 12])
def test_noise_of_models_is_as_drawn(models: int) -> None:
    """Medians of the halves are off by the standard error of a median; two models by both's."""
    rng = np.random.default_rng(1)
    count, spread = 400, 0.02
    table = rng.normal(1.0, spread, (200, models, count))
    noise = np.mean([level(each.tolist()).noise for each in table])
    own = spread * np.sqrt(np.pi / 2 / (count / 2)) * np.sqrt(2)
    expected = own * np.sqrt(2 / np.pi)  # the mean of an absolute difference
    assert 0.95 * expected < noise < 1.1 * np.sqrt(1 + 1 / (models - 1)) * expected


def test_model_of_the_first_rounds_only_is_compared_in_those() -> None:
    found = level([[1.0, 1.0, 2.0, 2.0], [5.0, 5.0], [1.0, 1.0, 2.0, 2.0]])
    assert [each / found.seconds[0] for each in found.seconds] == pytest.approx([1.0, 5.0, 1.0])
    alone = level([[1.0, 1.0, 2.0, 2.0], [5.0, 5.0]])
    assert alone.seconds[1] / alone.seconds[0] == pytest.approx(5.0, rel=1e-3)
    assert alone.noise == [0.0, 0.0]


def test_model_alone_has_a_low_quantile() -> None:
    found = level([[4.0, 1.0, 3.0, 2.0]])
    assert found.seconds == [low_quantile([1.0, 2.0, 3.0, 4.0])]
    assert found.noise == [split_half_noise([4.0, 1.0, 3.0, 2.0])]
