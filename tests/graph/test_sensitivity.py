"""Predicted divergences against measured ones, layer by layer and tensor by tensor."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

from advisor.formats import scheme_named
from advisor.passes import sensitivity
from advisor.passes.apply import dequantize, quantize_dequantize
from advisor.passes.capture import capture
from advisor.passes.divergence import OutputKind, measure_powers
from advisor.passes.fx import attribute
from advisor.passes.graph import ActivationParams, Graph, Layer, name_of
from advisor.passes.layers import LAYER_OPS, PRODUCT_OPS, input_argument, operands
from advisor.passes.rounding import round_weight
from advisor.passes.rounding.store import RoundedWeights
from advisor.passes.sensitivity import (
    LARGEST_ERROR,
    MOST_PROBES,
    Column,
    Question,
    Sensitivity,
    enough_probes,
    probe,
)
from advisor.passes.spool import Spool
from tests.graph.small import (
    Workbench,
    images,
    make_setting,
    make_workbench,
    sentences,
    trained_cnn,
    trained_transformer,
)

Distance = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], torch.Tensor]


class Changed(torch.fx.Interpreter):
    """The float graph with other weights, and with tensors changed for all or for one reader."""

    def __init__(
        self,
        graph: Graph,
        *,
        weights: Mapping[str, torch.Tensor] | None = None,
        tensors: Mapping[str, ActivationParams] | None = None,
        edges: Mapping[tuple[str, str], ActivationParams] | None = None,
    ) -> None:
        super().__init__(graph.module, garbage_collect_values=False)
        self.weights, self.tensors, self.edges = weights or {}, tensors or {}, edges or {}

    def run_node(self, n: torch.fx.Node) -> Any:
        read: tuple[torch.fx.Node, ...] = ()
        if n.target in PRODUCT_OPS:
            read = tuple(operands(n))
        elif n.target in LAYER_OPS:
            read = (input_argument(n),)
        source = next((each for each in read if (name_of(each), name_of(n)) in self.edges), None)
        params = None if source is None else self.edges[name_of(source), name_of(n)]
        if source is not None and params is not None:
            kept = self.env[source]
            self.env[source] = rounded(kept, params)
            value = super().run_node(n)
            self.env[source] = kept
        elif n.op == "get_attr" and str(n.target) in self.weights:
            value = self.weights[str(n.target)]
        else:
            value = super().run_node(n)
        own = self.tensors.get(name_of(n))
        return value if own is None else rounded(value, own)


def rounded(x: torch.Tensor, params: ActivationParams) -> torch.Tensor:
    return quantize_dequantize(x, params.scale, params.zero_point, params.dtype)


def outputs_of(interpreter: torch.fx.Interpreter, data: Spool) -> list[list[torch.Tensor]]:
    with torch.no_grad():
        return [list(interpreter.run(*flat, enable_io_processing=False)) for flat in data]


def kl(outputs: Sequence[torch.Tensor], references: Sequence[torch.Tensor]) -> torch.Tensor:
    """Written once more, with torch's own function."""
    return F.kl_div(
        F.log_softmax(outputs[0], -1),
        F.log_softmax(references[0], -1),
        reduction="batchmean",
        log_target=True,
    )


def measure(graph: Graph, data: Spool, distance: Distance, **changes: Any) -> float:
    """Mean distance from the float graph over all samples."""
    reference = outputs_of(torch.fx.Interpreter(graph.module), data)
    moved = outputs_of(Changed(graph, **changes), data)
    together = [
        [torch.cat(parts) for parts in zip(*runs, strict=True)] for runs in (moved, reference)
    ]
    return float(distance(*together))


def rounded_weight(graph: Graph, layer: Layer, scheme: str, algorithm: str) -> torch.Tensor:
    fmt = scheme_named(scheme).weight
    weight = attribute(graph.module, layer.weight)
    return dequantize(round_weight(weight, fmt, algorithm), fmt, layer.weight_shape)


def score(
    bench: Workbench, weights: Sequence[tuple[Layer, str, str]], **options: Any
) -> Sensitivity:
    question = Question(
        weights=weights,
        sites=bench.setting.regions.sites,
        params=bench.simulator.params({"observer": "minmax"}),
    )
    settings: dict[str, Any] = {"probes": 16, "max_samples": 256, **options}
    return probe(
        bench.graph,
        bench.data.scoring,
        question,
        rounded=bench.simulator.rounded,
        kinds=bench.kinds,
        powers=bench.simulator.powers,
        **settings,
    )


def every_weight(graph: Graph, schemes: Sequence[str]) -> list[tuple[Layer, str, str]]:
    weighted = [layer for layer in graph.layers if not layer.is_product]
    return [(layer, scheme, "rtn") for layer in weighted for scheme in schemes]


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    setting = make_setting(trained_cnn(), images(4)[0])
    folder = tmp_path_factory.mktemp("cnn")
    return make_workbench(setting, images(512, seed=8)[0], folder, size=128)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    setting = make_setting(trained_transformer(), sentences(4)[0])
    folder = tmp_path_factory.mktemp("transformer")
    return make_workbench(setting, sentences(512, seed=8)[0], folder, size=128)


@pytest.fixture(params=["cnn", "transformer"])
def bench(request: pytest.FixtureRequest) -> Workbench:
    found: Workbench = request.getfixturevalue(request.param)
    return found


def test_weights_are_predicted_and_ranked(bench: Workbench) -> None:
    """Every layer at 8 and 4 bits within 25 % of what is measured, on the samples scored."""
    schemes = ("w8", "w4")
    weights = every_weight(bench.graph, schemes)
    sensitivity = score(bench, weights, probes=32)
    predicted: list[float] = []
    measured: list[float] = []
    for layer, scheme, algorithm in weights:
        predicted.append(sensitivity.divergence(("weight", layer.name, f"{scheme}/{algorithm}")))
        changed = {layer.weight: rounded_weight(bench.graph, layer, scheme, algorithm)}
        measured.append(measure(bench.graph, bench.data.scoring, kl, weights=changed))
    for (layer, scheme, _), guess, truth in zip(weights, predicted, measured, strict=True):
        assert guess == pytest.approx(truth, rel=0.25), (layer.name, scheme)
    assert spearmanr(predicted, measured).statistic >= 0.9


def test_coarse_weights_are_still_ranked(bench: Workbench) -> None:
    weights = every_weight(bench.graph, ("w8", "w4", "w2-g16", "fp16"))
    weights = [
        w for w in weights if w[1] != "w2-g16" or w[0].weight_count // w[0].weight_shape[0] >= 16
    ]
    sensitivity = score(bench, weights)
    predicted = [
        sensitivity.divergence(("weight", layer.name, f"{scheme}/{algorithm}"))
        for layer, scheme, algorithm in weights
    ]
    measured = [
        measure(
            bench.graph,
            bench.data.scoring,
            kl,
            weights={la.weight: rounded_weight(bench.graph, la, scheme, algorithm)},
        )
        for la, scheme, algorithm in weights
    ]
    assert spearmanr(predicted, measured).statistic >= 0.9


def test_edges_and_tensors_are_predicted(bench: Workbench) -> None:
    """Activations rounded to 5 bits' steps: at 8 bits KL in float32 is mostly rounding noise."""
    coarse = {
        name: ActivationParams(
            scale=params.scale * 8, zero_point=params.zero_point // 8, dtype=params.dtype
        )
        for name, params in bench.simulator.params({"observer": "minmax"}).items()
    }
    sites = bench.setting.regions.sites
    question = Question(weights=(), sites=sites, params=coarse)
    sensitivity = probe(
        bench.graph,
        bench.data.scoring,
        question,
        rounded=bench.simulator.rounded,
        kinds=bench.kinds,
        powers=bench.simulator.powers,
        probes=32,
        max_samples=256,
    )
    for site in sites:
        params = coarse[site.tensor]
        truth = measure(bench.graph, bench.data.scoring, kl, tensors={site.tensor: params})
        guess = sensitivity.divergence(("tensor", site.tensor, ""))
        assert guess == pytest.approx(truth, rel=0.25), site.tensor
        for reader in site.readers:
            edges = {(site.tensor, reader): params}
            truth = measure(bench.graph, bench.data.scoring, kl, edges=edges)
            guess = sensitivity.divergence(("edge", site.tensor, reader))
            assert guess == pytest.approx(truth, rel=0.25), (site.tensor, reader)


def test_changes_together_are_predicted(cnn: Workbench) -> None:
    weights = every_weight(cnn.graph, ("w4",))
    sensitivity = score(cnn, weights, probes=32)
    columns: list[Column] = [("weight", layer.name, "w4/rtn") for layer, _, _ in weights]
    changed = {
        layer.weight: rounded_weight(cnn.graph, layer, "w4", "rtn") for layer in cnn.graph.layers
    }
    truth = measure(cnn.graph, cnn.data.scoring, kl, weights=changed)
    assert sensitivity.divergence(*columns) == pytest.approx(truth, rel=0.25)


def test_the_stated_error_covers_the_truth(cnn: Workbench) -> None:
    """Few probes against many: the difference is within a few standard errors."""
    weights = every_weight(cnn.graph, ("w4",))
    few, many = score(cnn, weights, probes=2, seed=5), score(cnn, weights, probes=64)
    for column in few.scores:
        gap = abs(few.divergence(column) - many.divergence(column))
        assert gap <= 4 * (few.error([column]) + many.error([column]))
        assert many.error([column]) < few.error([column])
    assert few.samples == many.samples == 256
    assert {scores.shape for scores in few.scores.values()} == {(512,)}


def test_the_stated_error_is_that_of_the_mean_of_summed_squares(cnn: Workbench) -> None:
    """Of a weight and an input that are one error, and of terms that add up."""
    found = score(cnn, every_weight(cnn.graph, ("w4", "w8")), probes=2, seed=5)
    first, second, third = list(found.scores)[:3]
    a, b, c = (found.scores[column].double().numpy() for column in (first, second, third))
    each = (a + b) ** 2 / 2 + c**2 / 2
    error = float(np.std(each, ddof=1) / len(each) ** 0.5)
    assert found.error([first, second], [third]) == pytest.approx(error, rel=1e-5)
    assert found.error() == 0.0


def test_probes_follow_the_candidates_and_the_samples(cnn: Workbench) -> None:
    assert enough_probes(200, 128) > enough_probes(10, 128)
    assert enough_probes(200, 64) > enough_probes(200, 256)
    assert enough_probes(10_000, 2) == MOST_PROBES
    assert enough_probes(2, 10_000) == 1
    # Signs at random: the largest of 200 estimates is off by no more than was promised.
    count = 128 * enough_probes(200, 128)
    draws = np.random.default_rng(0).standard_normal((50, 200, count))
    largest = np.abs(np.mean(draws**2, axis=2) - 1).max(axis=1)
    assert largest.mean() <= LARGEST_ERROR
    assert largest.mean() >= LARGEST_ERROR / 2  # nor were many more spent than needed
    # And that is what scoring takes: every weight, every tensor and every reader of one.
    sites = cnn.setting.regions.sites
    for schemes in (("w8",), ("w8", "w4", "w8a8")):
        weights = every_weight(cnn.graph, schemes)
        columns = len(weights) + len(sites) + sum(len(site.readers) for site in sites)
        found = score(cnn, weights, probes=None, max_samples=96)
        assert found.probes == enough_probes(columns, 96)


def test_memory_does_not_grow_with_the_candidates(
    cnn: Workbench, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Bytes of all tensors alive while each change is scored: one change at a time, so that ten
    candidates take what one takes, and their scores.

    What was there before is frozen, which hides it from the collector: the walks are over what
    scoring makes.
    """
    gc.collect()
    gc.freeze()
    request.addfinalizer(gc.unfreeze)
    peak = 0

    def dot(*arguments: Any) -> torch.Tensor:
        nonlocal peak
        alive = (each for each in gc.get_objects() if type(each) is torch.Tensor)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
        peak = max(peak, sum(storages.values()))
        return original(*arguments)

    original = sensitivity._dot
    monkeypatch.setattr(sensitivity, "_dot", dot)

    def peak_of(schemes: Sequence[str], algorithms: Sequence[str]) -> tuple[int, int]:
        nonlocal peak
        gc.collect()
        peak = 0
        layers = [layer for layer in cnn.graph.layers if not layer.is_product]
        found = probe(
            cnn.graph,
            cnn.data.scoring,
            Question(
                weights=[(y, s, a) for y in layers for s in schemes for a in algorithms],
                sites=(),
                params={},
            ),
            # Rounded weights are kept for later, up to a limit of their own: none here.
            rounded=RoundedWeights(cnn.graph, limit_bytes=0),
            kinds=cnn.kinds,
            powers=cnn.simulator.powers,
            probes=2,
            max_samples=64,
        )
        return peak, sum(4 * scores.numel() for scores in found.scores.values())

    few, own = peak_of(("w8",), ("rtn",))
    many, scores = peak_of(("w8", "w4", "w8a8", "w8a8-dynamic", "w4a8-dynamic"), ("rtn", "mse"))
    assert scores == 10 * own
    assert many - scores <= 1.1 * few


def test_a_seed_repeats_exactly(cnn: Workbench) -> None:
    weights = every_weight(cnn.graph, ("w8",))
    first, again = score(cnn, weights, probes=2, seed=3), score(cnn, weights, probes=2, seed=3)
    other = score(cnn, weights, probes=2, seed=4)
    for column, scores in first.scores.items():
        assert torch.equal(scores, again.scores[column])
        assert not torch.equal(scores, other.scores[column])


def test_gradients_are_used_where_the_caller_switched_them_off(cnn: Workbench) -> None:
    weights = every_weight(cnn.graph, ("w8",))
    expected = score(cnn, weights, probes=1)
    with torch.no_grad():
        found = score(cnn, weights, probes=1)
    for column, scores in expected.scores.items():
        assert torch.equal(scores, found.scores[column])
        assert scores.any()


def test_nothing_of_the_model_is_touched(cnn: Workbench) -> None:
    before = {name: value.clone() for name, value in cnn.graph.module.state_dict().items()}
    score(cnn, every_weight(cnn.graph, ("w4",)), probes=1)
    after = cnn.graph.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in cnn.graph.module.parameters())


@pytest.mark.parametrize("limit", [1, 31, 100, 10_000])
def test_no_more_samples_than_asked(cnn: Workbench, limit: int) -> None:
    weights = every_weight(cnn.graph, ("w8",))[:1]
    found = score(cnn, weights, probes=2, max_samples=limit)
    assert found.samples == min(limit, 256)
    assert all(scores.shape == (2 * found.samples,) for scores in found.scores.values())


@pytest.mark.parametrize(("sequence_first", "flat"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("length", [12, 8])
def test_layouts_give_the_same_scores(
    tmp_path: Path, sequence_first: bool, flat: bool, length: int
) -> None:
    """Where a layer's samples are in its tensors must not matter: same model, same numbers.

    A length of 8 is a multiple of the chunk of 4, so the first dimension alone tells nothing.
    """
    results: list[Sensitivity] = []
    for layout in ({}, {"sequence_first": sequence_first, "flat": flat}):
        model = trained_transformer(**layout)
        graph = capture(model, (sentences(4, length=length)[0],), {})
        spool = Spool(tmp_path / str(len(results)))
        spool.append([sentences(14, seed=2, length=length)[0]], batch=14)
        results.append(
            probe(
                graph,
                spool,
                Question(weights=every_weight(graph, ("w4",)), sites=(), params={}),
                rounded=RoundedWeights(graph),
                kinds=["logits"],
                powers=[1.0],
                probes=2,
                chunk=4,
            )
        )
    usual, other = results
    assert list(usual.scores) == list(other.scores)
    for column, scores in usual.scores.items():
        largest = float(scores.abs().max())
        assert torch.allclose(other.scores[column], scores, rtol=1e-3, atol=1e-3 * largest), column


class TwoHeads(nn.Module):
    """Logits over five classes and an embedding of the same images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 32)
        self.classes = nn.Linear(32, 5)
        self.embedding = nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        h = torch.tanh(self.body(x.flatten(1)))
        return {"logits": self.classes(h), "embedding": self.embedding(h), "tokens": x.long()}


def both(outputs: Sequence[torch.Tensor], references: Sequence[torch.Tensor]) -> torch.Tensor:
    return (kl(outputs, references) + relative(outputs[1:], references[1:])) / 2


def relative(outputs: Sequence[torch.Tensor], references: Sequence[torch.Tensor]) -> torch.Tensor:
    """Squared error over the reference's power, over everything at once."""
    return (outputs[0] - references[0]).square().sum() / references[0].square().sum()


class Scalar(nn.Module):
    """Regression with an output of shape (batch,)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nn.Linear(64, 16), nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(F.gelu(self.body(x.flatten(1))))
        return y.squeeze(-1)


class SequenceFirst(nn.Module):
    """An embedding of shape (sequence, batch, channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(torch.tanh(self.body(x.squeeze(1).transpose(0, 1))))
        return y


CASES: list[tuple[type[nn.Module], list[OutputKind], Distance]] = [
    (TwoHeads, ["logits", "embedding", "ignored"], both),
    (Scalar, ["regression"], relative),
    (SequenceFirst, ["embedding"], relative),
]


@pytest.mark.parametrize(("kind_of_model", "kinds", "distance"), CASES)
def test_other_outputs_are_predicted(
    kind_of_model: type[nn.Module],
    kinds: list[OutputKind],
    distance: Distance,
    tmp_path: Path,
) -> None:
    torch.manual_seed(1)
    graph = capture(kind_of_model().eval(), (images(4)[0],), {})
    spool = Spool(tmp_path)
    spool.append([images(128)[0]], batch=128)
    weights = every_weight(graph, ("w8", "w4"))
    sensitivity = probe(
        graph,
        spool,
        Question(weights=weights, sites=(), params={}),
        rounded=RoundedWeights(graph),
        kinds=kinds,
        powers=measure_powers(outputs_of(torch.fx.Interpreter(graph.module), spool)),
        probes=32,
    )
    for layer, scheme, algorithm in weights:
        changed = {layer.weight: rounded_weight(graph, layer, scheme, algorithm)}
        truth = measure(graph, spool, distance, weights=changed)
        guess = sensitivity.divergence(("weight", layer.name, f"{scheme}/{algorithm}"))
        assert guess == pytest.approx(truth, rel=0.25), (layer.name, scheme)


class FixedBatch(nn.Module):
    """A model that takes batches of 8 only."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x.reshape(8, 64))
        return y


def test_a_fixed_batch_stays_whole(tmp_path: Path) -> None:
    torch.manual_seed(1)
    graph = capture(FixedBatch().eval(), (images(8)[0],), {})
    assert graph.batch == 8
    spool = Spool(tmp_path)
    for seed in range(6):
        spool.append([images(8, seed=seed)[0]], batch=8)
    weights = every_weight(graph, ("w4",))
    options: dict[str, Any] = {
        "rounded": RoundedWeights(graph),
        "kinds": ["logits"],
        "powers": [1.0],
        "probes": 64,
    }
    question = Question(weights=weights, sites=(), params={})
    found = probe(graph, spool, question, max_samples=20, **options)
    assert found.samples == 24  # whole batches
    three = Spool(tmp_path / "three")
    for seed in range(3):
        three.append([images(8, seed=seed)[0]], batch=8)
    (layer,) = graph.layers
    changed = {layer.weight: rounded_weight(graph, layer, "w4", "rtn")}
    truth = measure(graph, three, kl, weights=changed)
    assert found.divergence(("weight", layer.name, "w4/rtn")) == pytest.approx(truth, rel=0.25)
