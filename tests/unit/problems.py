"""Random assignment problems, small enough to enumerate or as large as asked, for the search."""

import itertools

import numpy as np

from advisor.search.problem import (
    Candidate,
    Choice,
    Evaluation,
    FloatArray,
    Indicator,
    Linear,
    Literal,
    Problem,
    evaluate,
)

Rng = np.random.Generator


def small_problem(rng: Rng, *, groups: int = 5, most: int = 3, wide: bool = False) -> Problem:
    """Indicators with negation and nesting, four program points, ties; at most most**groups.

    wide: divergences of 1e-10 to 1, bytes up to 1e9.
    """
    sizes = [int(rng.integers(1, most + 1)) for _ in range(groups)]
    count = 4

    def linear(scale: float, lowest: int = 0) -> Linear:
        return Linear(
            constant=float(rng.integers(0, 50)) * scale,
            per_group=tuple(_whole(rng, 0, 100, s) * scale for s in sizes),
            per_indicator=_whole(rng, lowest, 60, count) * scale * (rng.random(count) < 0.7),
        )

    divergence = linear(1.0)
    if wide:
        divergence = Linear(
            per_group=tuple(10 ** rng.uniform(-10, 0, size=s) for s in sizes),
            per_indicator=10 ** rng.uniform(-10, 0, size=count),
        )
    return Problem(
        groups=tuple(f"g{i}" for i in range(groups)),
        candidates=tuple(tuple(Candidate(scheme=f"s{c}") for c in range(s)) for s in sizes),
        indicators=tuple(_indicator(rng, i, sizes) for i in range(count)),
        size_bytes=linear(1e7 if wide else 1.0),
        latency_s=linear(1e-4),
        memory_bytes=tuple(linear(1e7 if wide else 1.0, lowest=-30) for _ in range(4)),
        divergence=divergence,
        energy_j=linear(1e-3),
    )


def layered_problem(rng: Rng, *, groups: int, most: int = 8, points: int = 50) -> Problem:
    """Like a network: bits trade bytes and seconds against divergence; neighbours share casts."""
    params = 10 ** rng.uniform(3, 6, size=groups)
    bits = np.array([32, 16, 8.2, 8, 5, 4.5, 3, 2.5])[:most]
    size = tuple(np.ceil(p * bits / 8) for p in params)
    casts = tuple(
        Indicator(
            name=f"cast{g}",
            literals=(
                Literal(group=g, candidates=(2, 3)),
                Literal(group=g + 1, candidates=(2, 3), negated=True),
            ),
        )
        for g in range(groups - 1)
    )
    memory: list[Linear] = []
    for _ in range(points):
        saved = np.zeros(len(casts))
        saved[int(rng.integers(len(casts)))] = -3e5 * rng.random()
        constant = 4e5 * rng.uniform(1, 6)
        memory.append(Linear(constant=constant, per_group=size, per_indicator=saved))
    steps = [np.cumsum(rng.uniform(0.5, 2, size=most - 1)) for _ in params]
    return Problem(
        groups=tuple(f"layer{g}" for g in range(groups)),
        candidates=tuple(tuple(Candidate(scheme=f"w{b:g}") for b in bits) for _ in params),
        indicators=casts,
        size_bytes=Linear(per_group=size),
        latency_s=Linear(
            per_group=tuple(p * 1e-10 * (bits / 8 + rng.uniform(0, 3, most)) for p in params),
            per_indicator=rng.uniform(0, 1e-5, size=len(casts)),
        ),
        memory_bytes=tuple(memory),
        divergence=Linear(
            per_group=tuple(
                np.concatenate([[0.0], 10 ** rng.uniform(-10, -6) * 4.0**step]) for step in steps
            )
        ),
        # The bytes that move, and arithmetic that is cheaper with integers (the third and fourth).
        energy_j=Linear(
            per_group=tuple(
                1e-11 * s + 1e-12 * p * _work(bits) for s, p in zip(size, params, strict=True)
            ),
            per_indicator=np.full(len(casts), 1e-9),
        ),
    )


def _work(bits: FloatArray) -> FloatArray:
    return np.where((bits > 7) & (bits < 9), 1.0, 4.0)


def enumerate_plans(problem: Problem) -> list[tuple[Choice, Evaluation]]:
    """Every choice with its quantities."""
    choices = itertools.product(*(range(len(options)) for options in problem.candidates))
    return [(choice, evaluate(problem, choice)) for choice in choices]


def _whole(rng: Rng, low: int, high: int, count: int) -> FloatArray:
    return rng.integers(low, high, size=count).astype(np.float64)


def _indicator(rng: Rng, index: int, sizes: list[int]) -> Indicator:
    literals: list[Literal] = []
    for _ in range(int(rng.integers(1, 4))):
        negated = bool(rng.random() < 0.5)
        if index and rng.random() < 0.3:
            literals.append(Literal(indicator=int(rng.integers(index)), negated=negated))
            continue
        group = int(rng.integers(len(sizes)))
        taken = rng.permutation(sizes[group])[: int(rng.integers(sizes[group] + 1))]
        candidates = tuple(int(c) for c in taken)
        literals.append(Literal(group=group, candidates=candidates, negated=negated))
    return Indicator(name=f"i{index}", literals=tuple(literals))
