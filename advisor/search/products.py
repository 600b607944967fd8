"""The best plan with interactions, proven: products of choices as indicators of the linear problem.

The quadratic form of ``Surrogate`` becomes linear when every product of two columns is an indicator
of its own that holds when both do (R. Fortet, "L'algèbre de Boole et ses applications en recherche
opérationnelle", 1960). Their number grows with the square of the columns, so this is for small
problems; ``Descent`` serves the others.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from advisor.search.model import columns_of
from advisor.search.problem import Indicator, Linear, Literal, Problem
from advisor.search.table import IntArray

if TYPE_CHECKING:
    from advisor.search.surrogate import Surrogate

MOST_PRODUCTS: Final = 450
"""Products of two columns up to which the solver proves the optimum in about a second: ten groups
of four candidates."""


def count_products(problem: Problem, surrogate: Surrogate) -> int:
    """Products of two columns that the form weighs and that can be 1 together."""
    return len(_pairs(problem, surrogate)[0])


def with_products(problem: Problem, surrogate: Surrogate) -> Problem:
    """The problem whose divergence is the form: linear in candidates, indicators and products.

    surrogate: over the columns of ``problem`` (candidates, then indicators).
    """
    columns = columns_of(problem)
    alone = surrogate.slopes + np.diag(surrogate.moments)
    first, second = _pairs(problem, surrogate)
    literals = _literals(problem)
    products = tuple(
        Indicator(name=f"{a} and {b}", literals=(literals[int(a)], literals[int(b)]))
        for a, b in zip(first, second, strict=True)
    )
    return replace(
        problem,
        indicators=(*problem.indicators, *products),
        divergence=Linear(
            constant=surrogate.base,
            per_group=tuple(np.split(alone[: columns.candidates], columns.starts[1:-1])),
            per_indicator=np.concatenate(
                [alone[columns.candidates :], 2 * surrogate.moments[first, second]]
            ),
        ),
    )


def _pairs(problem: Problem, surrogate: Surrogate) -> tuple[IntArray, IntArray]:
    """First and second column of every product."""
    columns = columns_of(problem)
    group = np.repeat(np.arange(len(problem.groups)), np.diff(columns.starts))
    # An indicator belongs to no group: it may hold beside anything.
    owner = np.concatenate([group, -1 - np.arange(columns.indicators)])
    first, second = np.nonzero(np.triu(surrogate.moments, 1))
    apart = owner[first] != owner[second]
    return first[apart].astype(np.int64), second[apart].astype(np.int64)


def _literals(problem: Problem) -> list[Literal]:
    """What each column says, in the order of the columns."""
    return [
        *(
            Literal(group=group, candidates=(index,))
            for group, options in enumerate(problem.candidates)
            for index in range(len(options))
        ),
        *(Literal(indicator=index) for index in range(len(problem.indicators))),
    ]
