"""The planning benchmark on a network small enough for a test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from advisor.evidence import Evidence
from advisor.search.problem import evaluate
from benchmarks.planning import peers, plans, summarise
from benchmarks.planning.cases import open_evidence
from benchmarks.planning.optimum import Cnn
from benchmarks.planning.questions import BUDGETS, SCHEMES, Question, budget_bytes
from benchmarks.planning.simulate import FLOAT, WeightSimulator, weight_simulator


@pytest.fixture(scope="module")
def question() -> Question:
    torch.manual_seed(0)
    images = torch.rand(96, 1, 8, 8)
    return Question(
        name="tiny",
        model=Cnn().eval(),
        kind="logits",
        pool={"x": images[:64]},
        unused={"x": images[64:]},
        count=48,
    )


@pytest.fixture(scope="module")
def evidence(question: Question) -> Iterator[Evidence]:
    with open_evidence(question, question.planning(0), 0) as gathered:
        simulator = weight_simulator(gathered.simulator)
        simulator.judge_by(question.unused)
        yield replace(gathered, simulator=simulator)


def test_exchanged_weights_measure_what_the_simulation_does(evidence: Evidence) -> None:
    simulator = evidence.simulator
    assert isinstance(simulator, WeightSimulator)
    rng = np.random.default_rng(0)
    for _ in range(3):
        choice = tuple(int(rng.integers(1, 4)) for _ in evidence.problem.groups)
        exact = simulator.measure_graph(simulator.quantized(choice, {}))
        assert simulator.measure(choice, {}) == pytest.approx(exact, rel=1e-4)
    nothing = tuple(FLOAT for _ in evidence.problem.groups)
    assert simulator.measure(nothing, {}) == pytest.approx(0.0, abs=1e-7)
    runs = simulator.runs
    simulator.measure(nothing, {})
    assert simulator.runs == runs


def test_every_layer_has_every_format_and_every_budget_a_plan(evidence: Evidence) -> None:
    problem = evidence.problem
    assert all(tuple(o.scheme for o in options) == SCHEMES for options in problem.candidates)
    sizes = problem.size_bytes.per_group
    for share in BUDGETS:
        limit = budget_bytes(sizes, share)
        assert sum(row[-1] for row in sizes) <= limit <= sum(row[1] for row in sizes)


def test_the_largest_answer_that_fits_counts(evidence: Evidence, tmp_path: Path) -> None:
    facts: dict[str, Any] = {
        "bytes": {
            "a.weight": {"fp16": 160.0, "w8": 80.0, "w4-g32": 50.0, "w2-g32": 30.0},
            "b.weight": {"fp16": 16.0, "w8": 8.0, "w4-g32": 5.0, "w2-g32": 3.0},
        },
        "fixed_bytes": 10.0,
    }
    answers = [
        {"a.weight": 8, "b.weight": 8},
        {"a.weight": 4, "b.weight": 8},
        {"a.weight": 2, "b.weight": 2},
        {"a.weight": 4},
    ]
    found = peers.fitting(answers, facts, 90.0)
    assert found == {"a.weight": "w4-g32", "b.weight": "fp16"}
    assert peers.fitting(answers, facts, 75.0) == {"a.weight": "w4-g32", "b.weight": "w8"}
    assert peers.fitting(answers, facts, 20.0) is None

    layers = evidence.prepared.setting.graph.layers
    answer = {layer.weight: "w4-g32" for layer in layers} | {layers[0].weight: "w8"}
    known = {"seeds": {"3": {"answers": [None, answer, answer, answer]}}}
    (tmp_path / "tiny.mct.json").write_text(json.dumps(known))
    read = plans.read_peers("tiny", 3, evidence, tmp_path)
    assert set(read) == {"mct"}
    assert read["mct"][0] is None
    assert read["mct"][1] == (1, 2, 2, 2, 2, 2)


def test_a_cell_is_inside_its_bytes_and_better_than_summing_noise(evidence: Evidence) -> None:
    simulator = evidence.simulator
    assert isinstance(simulator, WeightSimulator)
    tables = plans.loss_tables(evidence, simulator)
    assert set(tables) == {"diagonal", "direct", "sqnr"}
    cell = plans.plan_cell(evidence, simulator, BUDGETS[1], tables, 0)
    for text in cell["choices"].values():
        choice = tuple(map(int, text))
        assert evaluate(evidence.problem, choice).size_bytes <= cell["budget_bytes"]
    ours, sqnr = (tuple(map(int, cell["choices"][name])) for name in ("ours", "sqnr"))
    assert simulator.measure(ours, {}) <= simulator.measure(sqnr, {}) * 1.5


def test_intervals_hold_the_ratio() -> None:
    rng = np.random.default_rng(0)
    other = rng.exponential(size=500)
    ratio, low, high = plans.ratio_interval(0.8 * other + 0.01 * rng.random(500), other, 0)
    assert low <= ratio <= high
    assert 0.8 < low < high < 0.85


def test_the_page_says_what_does_not_hold(tmp_path: Path) -> None:
    def method(ratio: float) -> dict[str, Any]:
        return {
            "divergence": 0.1 / ratio,
            "ours_over_it": [ratio, ratio * 0.9, ratio * 1.1],
            "bytes": 99.0,
            "choice": "12",
        }

    cell: dict[str, Any] = {
        "seed": 0,
        "share": BUDGETS[0],
        "budget_bytes": 100.0,
        "model_gap": 0.0,
        "measurements": 40,
        "methods": {
            "ours": method(1.0),
            "direct": method(0.8),
            "diagonal": method(0.7),
            "scores": method(0.9),
            "sqnr": method(0.3),
            "mct": method(0.9),
            "nncf": None,
        },
    }
    record = {"model": "digits_cnn", "cells": [cell]}
    (tmp_path / "digits_cnn.plans.json").write_text(json.dumps(record))
    page = summarise.render(tmp_path)
    assert "| ours over the best other tool of each cell: at most 0.70 | **no** | 0.900" in page
    assert "| ours over direct measurement: at most 0.85 | yes | 0.800 |" in page
    assert "digits_cnn: 1 of 20" in page
