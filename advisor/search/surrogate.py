"""What a plan is predicted to lose, interactions included: a quadratic form over its columns.

divergence = base + Σ slopes + Σ Σ moments, over the columns of a plan: the candidates it takes and
the indicators that hold. Around the float model base and slopes are 0 and the form is half the mean
of the squared sum of scores. Off its diagonal the matrix of moments is an estimate from few samples
of very many numbers, and a solver finds its most optimistic errors: it is shrunk towards the
diagonal (Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
matrices", 2004). Plans are made with ``HALF``, and started from other shares too; those that
``ledoit_wolf`` and ``cross_validate`` find are what the planning benchmark holds it against.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from scipy.sparse import csr_array

from advisor.search.problem import FloatArray

HALF: Final = 0.5
"""Share of an interaction that is believed, where nothing is known about the noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogate:
    """base: divergence of the plan that the form is around. slopes: (columns,). moments:
    (columns, columns), symmetric; its diagonal is what every column loses alone.
    """

    base: float
    slopes: FloatArray
    moments: FloatArray

    def divergence(self, features: csr_array) -> FloatArray:
        """Predicted divergence of plans by their features; shape (plans,)."""
        quadratic = features.multiply(features @ self.moments).sum(axis=1)
        found: FloatArray = self.base + features @ self.slopes + np.asarray(quadratic).ravel()
        return found

    def divergence_near(self, features: csr_array, origin: csr_array) -> FloatArray:
        """The same for plans that differ in few columns from ``origin``, of shape (1, columns)."""
        plans = features.shape[0]
        pointers = np.arange(plans + 1) * origin.nnz
        repeated = csr_array(
            (np.tile(origin.data, plans), np.tile(origin.indices, plans), pointers),
            shape=features.shape,
        )
        change = csr_array(features - repeated)
        change.eliminate_zeros()
        steepness = self.slopes + 2 * (self.moments @ origin.toarray().ravel())
        curved = np.asarray(change.multiply(change @ self.moments).sum(axis=1)).ravel()
        found: FloatArray = self.divergence(origin)[0] + change @ steepness + curved
        return found


def fit_surrogate(
    scores: FloatArray, *, base: float = 0.0, slopes: FloatArray | None = None, kept: float = HALF
) -> Surrogate:
    """The form of per-sample scores, with the share ``kept`` of every interaction.

    scores: shape (columns, samples x probes); all zero for columns that change nothing.
    """
    moments = scores @ scores.T / (2 * max(scores.shape[1], 1))
    alone = np.diag(moments).copy()
    moments *= kept
    np.fill_diagonal(moments, alone)
    return Surrogate(
        base=base,
        slopes=np.zeros(len(scores)) if slopes is None else slopes,
        moments=moments,
    )


def ledoit_wolf(scores: FloatArray) -> float:
    """Share of the interactions to keep, by the noise of their estimates.

    The intensity of Ledoit and Wolf for a diagonal target with the sample's own variances
    (Schäfer and Strimmer, "A shrinkage approach to large-scale covariance matrix estimation",
    2005, target D), on scores scaled to variance 1: one minus summed variance of the off-diagonal
    moments over their summed square. Scores have mean 0 by construction.
    """
    z = _scaled(scores)
    count = z.shape[1]
    if len(z) < 2 or count < 2:
        return HALF
    r = z @ z.T / count
    variance = (z**2 @ (z**2).T / count - r**2) / (count - 1)
    off = ~np.eye(len(z), dtype=bool)
    square = float((r[off] ** 2).sum())
    if square <= 0:
        return HALF
    return float(np.clip(1 - variance[off].sum() / square, 0.0, 1.0))


def cross_validate(scores: FloatArray, folds: int = 4) -> float:
    """Share of the interactions to keep, by how well those of some samples foretell the others'.

    With R of all folds but one and Q of that one, correlations off the diagonal, the least of
    Σ (share R - Q)² over all folds is at Σ R Q / Σ R², since Q's noise does not depend on R's.
    Folds are neighbouring columns: a sample's probes are, so that a sample is in one fold.

    scores: shape (columns, samples x probes).
    """
    z = _scaled(scores)
    count = z.shape[1]
    if len(z) < 2 or count < folds:
        return HALF
    off = ~np.eye(len(z), dtype=bool)
    whole = z @ z.T
    agreement = square = 0.0
    edges = [count * fold // folds for fold in range(folds + 1)]
    for begin, end in pairwise(edges):
        own = z[:, begin:end] @ z[:, begin:end].T
        rest = (whole - own) / (count - (end - begin))
        agreement += float((rest * own)[off].sum()) / (end - begin)
        square += float((rest[off] ** 2).sum())
    return HALF if square <= 0 else float(np.clip(agreement / square, 0.0, 1.0))


def _scaled(scores: FloatArray) -> FloatArray:
    """Columns that change something, each over its root mean square."""
    power = np.sqrt(np.mean(scores**2, axis=1))
    found: FloatArray = scores[power > 0] / power[power > 0][:, None]
    return found
