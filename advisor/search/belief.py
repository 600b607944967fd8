"""What measured plans say about the plans beside them: a Gaussian process around the form.

The quadratic form is the prior mean of log divergence. Where it is wrong it is wrong about columns
(a large error of one choice) and about pairs of them (errors that undo each other more, or less,
than believed): each has an unknown factor, and plans that share what they lose most by share them.
With D and E the predicted divergences of two plans, dᵢ and eᵢ the shares that column i has of
them, and mᵢᵢ what it loses alone, the covariance of their errors is

    OF_COLUMNS² Σ dᵢ eᵢ + OF_PAIRS² Σ_{i<j} 4 mᵢᵢ mⱼⱼ / (D E)      over what both take.

Source of the method: Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006,
chapter 2; expected improvement: Jones, Schonlau and Welch, "Efficient global optimization of
expensive black-box functions", 1998.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from advisor.search.problem import Evaluation, FloatArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from advisor.search.surrogate import Surrogate

OF_COLUMNS: Final = 0.3
"""Standard deviation of a column's log factor: what measuring choices alone still leaves open."""

OF_PAIRS: Final = 0.3
"""The same of an interaction, in units of the most that it can be."""

TRUST: Final = 2 / 3
"""Share of a measured surprise that unseen samples show too: the rest is luck with the samples, and
a search that believes all of it ends with the luckiest plan."""

NOISE: Final = 0.05
"""Of a measurement: two plans that differ in nothing that matters are measured this far apart."""

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
_TINY: Final = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plans:
    """shares: (plans, columns). alone: what each taken column loses alone, (plans, columns).
    log_prior: (plans,)."""

    shares: FloatArray
    alone: FloatArray
    log_prior: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """The form, corrected by ``TRUST`` of what measurements say. weights: inverse covariance times
    residuals."""

    surrogate: Surrogate
    seen: _Plans
    factor: tuple[FloatArray, bool]
    weights: FloatArray

    def of(self, features: csr_array) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of the log divergence of plans; shapes (plans,)."""
        plans = _describe(self.surrogate, features)
        with_seen = _covariance(plans, self.seen)
        own = _variances(plans)
        known = np.einsum("ps,sp->p", with_seen, cho_solve(self.factor, with_seen.T))
        mean: FloatArray = plans.log_prior + TRUST * (with_seen @ self.weights)
        return mean, np.sqrt(np.maximum(own - known, 0.0))

    def expected_gain(
        self,
        features: csr_array,
        evaluations: Sequence[Evaluation],
        score: Callable[[float, Evaluation], float],
        best: float,
    ) -> FloatArray:
        """How much lower than ``best`` the score of every plan is expected to come out."""
        mean, deviation = self.of(features)
        found = np.zeros(len(mean))
        for at, evaluation in enumerate(evaluations):
            possible = np.exp(mean[at] + deviation[at] * _NODES)
            gains = [max(best - score(float(value), evaluation), 0.0) for value in possible]
            found[at] = float(np.dot(_WEIGHTS, gains) / _WEIGHTS.sum())
        return found


def believe(surrogate: Surrogate, features: csr_array, divergences: FloatArray) -> Belief:
    """Learn from plans that were measured. features: (plans, columns). divergences: above 0."""
    seen = _describe(surrogate, features)
    covariance = _covariance(seen, seen) + NOISE**2 * np.eye(len(divergences))
    factor = cho_factor(covariance, lower=True)
    residuals = np.log(np.maximum(divergences, _TINY)) - seen.log_prior
    return Belief(
        surrogate=surrogate,
        seen=seen,
        factor=factor,
        weights=cho_solve(factor, residuals),
    )


def _describe(surrogate: Surrogate, features: csr_array) -> _Plans:
    taken = features.toarray()
    alone = taken * np.diag(surrogate.moments)
    parts = taken * (features @ surrogate.moments + surrogate.slopes)
    whole = np.maximum(surrogate.divergence(features), _TINY)
    return _Plans(
        shares=parts / whole[:, None],
        alone=alone / whole[:, None],
        log_prior=np.log(whole),
    )


def _covariance(first: _Plans, second: _Plans) -> FloatArray:
    """Shape (plans of first, plans of second)."""
    # Columns that both take lose the same in both, up to the scale by D and E.
    shared = np.sqrt(first.alone) @ np.sqrt(second.alone).T
    squares = first.alone @ second.alone.T
    found: FloatArray = OF_COLUMNS**2 * (first.shares @ second.shares.T)
    found += 2 * OF_PAIRS**2 * np.maximum(shared**2 - squares, 0.0)
    return found


def _variances(plans: _Plans) -> FloatArray:
    """The diagonal of the covariance of plans with themselves."""
    found: FloatArray = OF_COLUMNS**2 * np.square(plans.shares).sum(axis=1)
    squares = np.square(plans.alone).sum(axis=1)
    found += 2 * OF_PAIRS**2 * np.maximum(plans.alone.sum(axis=1) ** 2 - squares, 0.0)
    return found
