"""Terms of a sum from measured sums, given what a profiler says of each term: ridge regression."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from advisor.search.problem import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What is believed of the terms before the sums are looked at.

    mean, deviation: seconds per term; shape (terms,). shared: directions in which terms err
    together (a profiler's cost per node, say) and by how much; shape (terms, directions), each
    column one standard deviation.
    """

    mean: FloatArray
    deviation: FloatArray
    shared: FloatArray


def fit(rows: FloatArray, sums_s: FloatArray, error: float, prior: Prior) -> FloatArray:
    """Seconds per term: the most likely ones under normal errors.

    Minimises Σ ((rows θ - sums) / (error sums))² + Σ u² + Σ v² with θ = mean + deviation u +
    shared v (Tikhonov regularisation; Hoerl and Kennard 1970). rows: shape (models, terms).
    sums_s: shape (models,). error: relative standard deviation of a sum.
    """
    directions = np.hstack([np.diag(prior.deviation), prior.shared])
    weights = 1.0 / (error * sums_s)
    design = (rows @ directions) * weights[:, None]
    wanted = (sums_s - rows @ prior.mean) * weights
    width = directions.shape[1]
    found, *_ = np.linalg.lstsq(
        np.vstack([design, np.eye(width)]), np.concatenate([wanted, np.zeros(width)]), rcond=None
    )
    return np.asarray(prior.mean + directions @ found, dtype=np.float64)
