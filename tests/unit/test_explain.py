"""Reasons of layers, with numbers worked out by hand from the problem's tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from advisor.explain import Terms, explain, find_terms, list_trades
from advisor.passes.graph import Layer
from advisor.plan import Option
from advisor.search.problem import Candidate, Indicator, Linear, Literal, Problem, evaluate
from tests.unit.problems import small_problem

LAYER = Layer(
    name="head",
    op="linear",
    weight="head.weight",
    weight_shape=(10, 64),
    bias=None,
    input="x",
    output="y",
)
SCHEMES = ("fp32", "w8a8", "w4-g32")
OPTIONS = tuple(Option(scheme=name, algorithm="rtn") for name in SCHEMES)
GROUPS = 2


def table(first: list[float], other: float) -> Linear:
    """Terms of the layer's group by candidate, and the same for every candidate of the other."""
    return Linear(per_group=(np.array(first), np.full(len(SCHEMES), other)))


@pytest.fixture(scope="module")
def problem() -> Problem:
    """The layer and another group. Reading integers beside a float neighbour costs 2 us more."""
    candidates = tuple(Candidate(scheme=name) for name in SCHEMES)
    cast = Indicator(
        name="cast",
        literals=(Literal(group=0, candidates=(1,)), Literal(group=1, candidates=(0,))),
    )
    latency = replace(table([40e-6, 30e-6, 31e-6], 60e-6), per_indicator=np.array([2e-6]))
    return Problem(
        groups=("head", "body"),
        candidates=(candidates,) * GROUPS,
        indicators=(cast,),
        size_bytes=table([4000, 1000, 600], 5000),
        latency_s=latency,
        memory_bytes=(table([4000, 1000, 600], 9000), table([0, 0, 0], 20000)),
        divergence=table([0.0, 0.004, 0.02], 0.001),
        energy_j=table([8e-6, 3e-6, 2e-6], 1e-6),
    )


def reason(
    problem: Problem,
    at: int,
    *,
    objective: str = "auto",
    used: dict[str, float] | None = None,
    bounds: dict[str, float] | None = None,
    body: int = 0,
) -> str:
    choice = (at, body)
    terms = find_terms(problem, choice, objective=objective, used=used or {}, bounds=bounds or {})
    candidate = Candidate(scheme=SCHEMES[at])
    return explain(LAYER, candidate, OPTIONS, None, terms, 0)


def test_latency_is_what_counts_where_it_is_the_objective(problem: Problem) -> None:
    """Float: 100 us. int8 32, with the cast, w4 31: 92 and 91 us."""
    assert reason(problem, 0) == "kept in float: w8a8 would save 8 us and add divergence 0.004"
    # The neighbour reads integers too, and there is no cast to pay.
    said = reason(problem, 0, body=1)
    assert said == "kept in float: w8a8 would save 10 us and add divergence 0.004"
    # From w4 int8 is 1 us slower, and float 9.
    assert reason(problem, 2) == (
        "best for its cost: w8a8 would cost 1 us and remove divergence 0.016"
    )


def test_a_saving_within_the_slack_is_no_reason(problem: Problem) -> None:
    """w4 saves 1 of 92 us: less than 2 %, for five times the loss."""
    assert reason(problem, 1) == (
        "best for its cost: w4-g32 would save 1 us and add divergence 0.016, and 2% of latency "
        "are no reason to lose more; fp32 would cost 8 us and remove divergence 0.004"
    )
    assert "no reason" not in reason(problem, 1, objective="accuracy")


@pytest.mark.parametrize(
    ("quantity", "limit", "better"),
    [
        ("latency_s", 95e-6, "fp32 would cost 8 us and remove divergence 0.004, beyond the budget"),
        ("size_bytes", 6500, "fp32 would cost 3 KB of size, add 8 us and remove divergence 0.004"),
        ("energy_j", 4.05e-6, "fp32 would cost 5 uJ, add 8 us and remove divergence 0.004"),
    ],
)
def test_the_limit_that_binds_gives_the_terms(
    problem: Problem, quantity: str, limit: float, better: str
) -> None:
    value = getattr(evaluate(problem, (1, 0)), quantity)
    used = {"memory_bytes": 0.5, quantity: max(value / limit, 0.99)}
    said = reason(problem, 1, used=used, bounds={quantity: limit})
    name = quantity.rpartition("_")[0]
    assert said.startswith(f"best under the {name} limit, which binds: w4-g32 would save ")
    assert better in said
    assert said.endswith("beyond the budget")
    # A limit that a clock keeps is not held against predictions.
    assert not reason(problem, 1, used=used).endswith("beyond the budget")


def test_what_saves_nothing_at_the_peak_saves_no_memory(problem: Problem) -> None:
    """The peak of 20000 B is elsewhere: no choice of this layer changes it."""
    said = reason(problem, 1, objective="memory")
    assert said == "best for its cost: nothing else has less memory or divergence"


@pytest.mark.parametrize("seed", range(4))
def test_trades_are_differences_of_whole_plans(seed: int) -> None:
    made = small_problem(np.random.default_rng([seed, 21]), groups=4)
    rng = np.random.default_rng(seed)
    choice = tuple(int(rng.integers(len(options))) for options in made.candidates)
    terms = find_terms(made, choice, objective="memory", used={}, bounds={"latency_s": 0.02})
    assert terms.quantity == "memory_bytes"
    for group, options in enumerate(made.candidates):
        others = [c for c in range(len(options)) if c != choice[group]]
        trades = list_trades(terms, group)
        assert len(trades) == len(others)
        for trade, index in zip(trades, others, strict=True):
            there = evaluate(made, (*choice[:group], index, *choice[group + 1 :]))
            here = evaluate(made, choice)
            assert trade.amount == there.memory_bytes - here.memory_bytes
            assert trade.divergence == there.divergence - here.divergence
            assert trade.fits == (there.latency_s <= 0.02)


def test_pins_refusals_and_frozen_layers_say_so(problem: Problem) -> None:
    terms: Terms = find_terms(problem, (0, 0), objective="auto", used={}, bounds={})
    fp32 = Candidate(scheme="fp32")
    pinned = explain(LAYER, fp32, OPTIONS, ("fp32", "*.head"), terms, 0)
    assert pinned == "pinned to fp32 by '*.head'"
    frozen = explain(replace(LAYER, frozen="shares its weight"), fp32, OPTIONS, None, terms, 0)
    assert frozen == "shares its weight"
    refused = (OPTIONS[0], Option(scheme="w8a8", algorithm="none", reason="no kernel for it"))
    alone = explain(LAYER, fp32, refused, None, terms, 0)
    assert alone == "kept in float: w8a8: no kernel for it"
