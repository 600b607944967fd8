"""Scores of candidates and tensors as the search's quadratic form, on real graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from advisor.assemble import build_problem, error_columns
from advisor.decide import layer_divergence
from advisor.foresight import column_scores
from advisor.formats import scheme_named
from advisor.indicators import Indicators
from advisor.passes.sensitivity import Column, Sensitivity
from advisor.search.problem import Choice, evaluate, holding
from advisor.search.surrogate import fit_surrogate
from advisor.search.table import as_array, table_of
from advisor.setting import Setting
from tests.graph.small import images, make_setting, sentences, trained_cnn, trained_transformer


@pytest.fixture(scope="module", params=["cnn", "transformer"])
def setting(request: pytest.FixtureRequest) -> Setting:
    models: dict[str, tuple[nn.Module, torch.Tensor]] = {
        "cnn": (trained_cnn(), images(4)[0]),
        "transformer": (trained_transformer(), sentences(4)[0]),
    }
    model, example = models[request.param]
    return make_setting(model, example, batch=2)


@pytest.fixture(scope="module")
def sensitivity(setting: Setting) -> Sensitivity:
    """Random scores for every column that there can be."""
    generator = torch.Generator().manual_seed(0)
    columns: list[Column] = []
    for group in setting.groups:
        for option in setting.space.candidates[group.name]:
            for layer in setting.layers_of(group):
                columns += error_columns(layer, option, setting.capability)
    for site in setting.regions.sites:
        columns.append(("tensor", site.tensor, ""))
        columns += [("edge", site.tensor, reader) for reader in site.readers]
    scores = {column: torch.randn(12, generator=generator) for column in dict.fromkeys(columns)}
    return Sensitivity(scores=scores, samples=6, probes=2)


def columns_of_plan(setting: Setting, choice: Choice, holds: np.ndarray) -> list[Column]:
    """Every error that a plan makes, by the names of the probe."""
    found: list[Column] = []
    for group, index in zip(setting.groups, choice, strict=True):
        option = setting.space.candidates[group.name][index]
        for layer in setting.layers_of(group):
            found += error_columns(layer, option, setting.capability)
    indicators = Indicators(setting)
    found += [("tensor", t, "") for t, index in indicators.produced.items() if holds[index]]
    found += [("edge", *edge) for edge, index in indicators.edges.items() if holds[index]]
    return found


def test_the_form_is_the_problem_without_interactions_and_the_probe_with_them(
    setting: Setting, sensitivity: Sensitivity
) -> None:
    problem = build_problem(setting, sensitivity)
    rng = np.random.default_rng(0)
    choices = [
        tuple(int(rng.integers(len(options))) for options in problem.candidates) for _ in range(40)
    ]
    scores = column_scores(setting, problem, sensitivity)
    features = table_of(problem).features(as_array(choices))
    alone = fit_surrogate(scores, kept=0.0).divergence(features)
    together = fit_surrogate(scores, kept=1.0).divergence(features)
    for index, choice in enumerate(choices):
        assert alone[index] == pytest.approx(evaluate(problem, choice).divergence, rel=1e-5)
        columns = columns_of_plan(setting, choice, holding(problem, choice))
        if columns:
            assert together[index] == pytest.approx(sensitivity.divergence(*columns), rel=1e-5)
        else:
            assert together[index] == 0.0


def test_a_layers_divergence_has_the_standard_error_of_its_terms(
    setting: Setting, sensitivity: Sensitivity
) -> None:
    """Error columns are one term, and every static input one of its own: half the mean square of
    each, and the spread of their sum over samples and probes."""
    seen: set[int] = set()
    for group in setting.groups:
        for option in setting.space.candidates[group.name]:
            for layer in setting.layers_of(group):
                own = error_columns(layer, option, setting.capability)
                edges = [("edge", name, layer.name) for name in (layer.input, layer.other) if name]
                edges = [e for e in dict.fromkeys(edges) if e in sensitivity.scores]
                if not scheme_named(option.scheme).is_static:
                    edges = []
                terms = [[*own]] if own else []
                terms += [[edge] for edge in edges]
                seen.add(len(terms))
                each = np.zeros(12)
                for term in terms:
                    each += sum(sensitivity.scores[c].double().numpy() for c in term) ** 2 / 2
                found, error = layer_divergence(setting, layer, option, sensitivity)
                assert found == pytest.approx(each.mean(), rel=1e-5)
                assert error == pytest.approx(each.std(ddof=1) / 12**0.5, rel=1e-5)
    assert {0, 1, 2} <= seen
