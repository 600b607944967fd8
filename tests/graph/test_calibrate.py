"""Calibration: read once, split in halves, bounded memory; means and ranges computed directly."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from advisor.errors import CalibrationError
from advisor.passes.calibrate import batch_size, cut, observe, spool_calibration, static_params
from advisor.passes.capture import capture
from advisor.passes.graph import Graph
from advisor.passes.group import TensorClass
from advisor.passes.observers import activation_params, choose_range
from advisor.passes.spool import Spool
from advisor.targets.capability import StaticRules
from tests.graph.small import Cnn, batches, images

RULES = StaticRules(dtype="uint8", symmetric=False)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    net = Cnn()
    net(images(64)[0])  # batch norm sees something
    return net.eval()


@pytest.fixture(scope="module")
def graph(model: nn.Module) -> Graph:
    return capture(model, (images(2)[0],), {})


def items(spool: Spool) -> list[torch.Tensor]:
    return [item[0] for item in spool]


def test_even_batches_score_and_odd_ones_are_held_out(
    graph: Graph, model: nn.Module, tmp_path: Path
) -> None:
    inputs = images(50, seed=1)[0]
    parts = list(torch.split(inputs, 12))  # the last one has 2
    data = spool_calibration(graph, batches(inputs, 12), tmp_path)
    assert [len(part) for part in items(data.scoring)] == [12, 12, 2]
    for found, expected in zip(items(data.scoring), parts[0::2], strict=True):
        assert torch.equal(found, expected)
    for found, expected in zip(items(data.held_out), parts[1::2], strict=True):
        assert torch.equal(found, expected)
    assert (data.scoring.samples, data.held_out.samples) == (26, 24)
    assert [data.scoring.batch(i) for i in range(3)] == [12, 12, 2]
    for found, part in zip(items(data.references), parts[1::2], strict=True):
        assert torch.allclose(found, model(part), atol=1e-5)
    assert data.notes == ()


def test_small_batches_are_joined(graph: Graph, model: nn.Module, tmp_path: Path) -> None:
    """Same samples in the same halves and order, and no item larger than asked."""
    inputs = images(50, seed=1)[0]
    parts = list(torch.split(inputs, 3))  # the last one has 2
    data = spool_calibration(graph, batches(inputs, 3), tmp_path, most=8)
    assert [len(part) for part in items(data.scoring)] == [6, 6, 6, 8]
    assert torch.equal(torch.cat(items(data.scoring)), torch.cat(parts[0::2]))
    assert torch.equal(torch.cat(items(data.held_out)), torch.cat(parts[1::2]))
    assert [data.held_out.batch(i) for i in range(4)] == [6, 6, 6, 6]
    assert torch.allclose(
        torch.cat(items(data.references)), model(torch.cat(parts[1::2])), atol=1e-5
    )


def test_batches_that_do_not_fit_together_stay_apart(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            shifted: torch.Tensor = self.layer(x).mean(dim=1) + shift
            return shifted

    x, shift = torch.randn(2, 3, 4), torch.zeros(4)
    graph = capture(Masked(), (x, shift), {})
    given = [[x, shift], [x, shift], [x, shift], [x, shift], [x, shift + 1]]
    data = spool_calibration(graph, given, tmp_path, most=8)
    assert [len(item[0]) for item in data.scoring] == [4, 2]
    assert [len(item[0]) for item in data.held_out] == [4]


def test_one_batch_is_cut_in_half(graph: Graph, tmp_path: Path) -> None:
    inputs = images(7)[0]
    data = spool_calibration(graph, [[inputs]], tmp_path)
    (scoring,), (held_out,) = items(data.scoring), items(data.held_out)
    assert torch.equal(torch.cat([scoring, held_out]), inputs)
    assert len(scoring) == 3
    assert data.notes == ()


def test_one_sample_serves_as_both_and_is_noted(graph: Graph, tmp_path: Path) -> None:
    inputs = images(1)[0]
    data = spool_calibration(graph, [[inputs]], tmp_path)
    assert torch.equal(items(data.scoring)[0], items(data.held_out)[0])
    assert "nothing is really held out" in data.notes[0]


def test_an_iterable_is_read_exactly_once(graph: Graph, tmp_path: Path) -> None:
    class Once:
        begun = 0

        def __iter__(self) -> Iterator[list[torch.Tensor]]:
            self.begun += 1
            return batches(images(16)[0], 4)

    source = Once()
    data = spool_calibration(graph, source, tmp_path)
    observe(graph, data.scoring, frozenset(), graph.layers)
    assert source.begun == 1
    assert len(list(data.scoring)) == len(list(data.scoring)) == 2


@pytest.mark.parametrize("given", [[], iter(())])
def test_nothing_is_an_error_that_says_what_to_pass(
    graph: Graph, tmp_path: Path, given: Any
) -> None:
    with pytest.raises(CalibrationError, match=r"empty.*calibration=None"):
        spool_calibration(graph, given, tmp_path)


def test_a_batch_without_samples_is_an_error(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="batch 1 has 0 samples"):
        spool_calibration(graph, [[images(2)[0]], [torch.zeros(0, 1, 8, 8)]], tmp_path)


def test_one_batch_is_in_memory_at_a_time(graph: Graph, tmp_path: Path) -> None:
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def generate() -> Iterator[list[torch.Tensor]]:
        nonlocal most
        for index in range(30):
            batch = torch.full((4, 1, 8, 8), float(index))
            alive.add(batch)
            most = max(most, len(alive))
            yield [batch]
            del batch

    data = spool_calibration(graph, generate(), tmp_path)
    assert most <= 2  # the one in use, and the one being made
    gc.collect()
    assert len(alive) == 0
    observations = observe(graph, data.scoring, frozenset({"stem"}), graph.layers)
    held = sum(stats.histogram.nbytes for stats in observations.tensors.values())
    assert held < 2**15


def test_the_spool_returns_what_it_was_given(tmp_path: Path) -> None:
    values = [
        torch.arange(6).reshape(2, 3),
        torch.tensor([True, False]),
        None,
        torch.randn(3).half(),
        7,
        torch.randn(2, 3).T,  # not contiguous
        torch.tensor(1.5),
        torch.zeros(0, 4),
    ]
    spool = Spool(tmp_path)
    spool.append(values, batch=2)
    for before, after in zip(values, spool.read(0), strict=True):
        if isinstance(before, torch.Tensor):
            assert torch.equal(before, after)
            assert before.dtype == after.dtype
        else:
            assert before == after


def test_the_spool_keeps_what_a_batch_was_and_not_what_becomes_of_it(tmp_path: Path) -> None:
    value = torch.ones(3)
    spool = Spool(tmp_path)
    spool.append([value, value], batch=3)  # one tensor twice
    value.zero_()
    first, second = spool.read(0)
    assert torch.equal(first, torch.ones(3))
    assert torch.equal(second, torch.ones(3))


def test_the_digest_is_of_everything(tmp_path: Path) -> None:
    def digest(name: str, *appended: list[Any]) -> str:
        spool = Spool(tmp_path / name)
        for values in appended:
            spool.append(values, batch=1)
        return spool.digest

    one = [torch.ones(2, 2)]
    base = digest("base", one)
    assert base == digest("same", [torch.ones(2, 2)])
    changed = torch.ones(2, 2)
    changed[1, 1] = 1 + 2**-20
    different = [
        digest("value", [changed]),
        digest("shape", [torch.ones(4)]),
        digest("dtype", [torch.ones(2, 2, dtype=torch.int32)]),
        digest("more", one, one),
        digest("constant", [torch.ones(2, 2), 3]),
        digest("other constant", [torch.ones(2, 2), 4]),
        digest("nothing"),
    ]
    assert len({base, *different}) == 8


def test_means_and_ranges_are_those_of_the_whole_data(graph: Graph, tmp_path: Path) -> None:
    inputs = images(40, seed=3)[0]
    data = spool_calibration(graph, batches(inputs, 7), tmp_path)
    layers = [layer for layer in graph.layers if layer.op != "embedding"]
    observations = observe(graph, data.scoring, frozenset({"stem"}), layers)
    scored = torch.cat(items(data.scoring))
    seen: dict[str, torch.Tensor] = {}
    calls = {node.name: node for node in graph.module.graph.nodes}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            seen[n.name] = value
            return value

    with torch.no_grad():
        Watch(graph.module).run(scored, enable_io_processing=False)
    by_name = {
        (n.meta.get("custom") or {}).get("advisor_name", n.name): n.name for n in calls.values()
    }
    for layer in layers:
        x = seen[by_name[layer.input]].numpy().astype(np.float64)
        axes = (0, 2, 3) if x.ndim == 4 else (0,)
        found = observations.input_means[layer.name].numpy()
        assert np.allclose(found, x.mean(axis=axes), rtol=1e-5, atol=1e-6)
    stem = seen[by_name["stem"]]
    assert observations.tensors["stem"].minimum == pytest.approx(float(stem.min()), rel=1e-6)
    assert observations.tensors["stem"].maximum == pytest.approx(float(stem.max()), rel=1e-6)
    assert observations.tensors["stem"].histogram.sum() == stem.numel()


def test_means_of_inputs_without_a_batch_dimension(tmp_path: Path) -> None:
    convolution = nn.Conv1d(3, 4, 2).eval()
    graph = capture(convolution, (torch.randn(3, 9),), {})
    value = torch.randn(3, 9, generator=torch.Generator().manual_seed(1))
    spool = Spool(tmp_path)
    spool.append([value], batch=1)
    (layer,) = graph.layers
    means = observe(graph, spool, frozenset(), graph.layers).input_means
    assert torch.allclose(means[layer.name], value.mean(1), atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 2])
def test_an_activation_that_is_not_finite_is_named(
    graph: Graph, tmp_path: Path, bad: float, where: int
) -> None:
    inputs = images(16)[0]
    inputs[where * 4, 0, 3, 3] = bad
    data = spool_calibration(graph, batches(inputs, 4), tmp_path)
    with pytest.raises(CalibrationError, match=r"tensor .* is NaN or infinite"):
        observe(graph, data.scoring, frozenset({"stem", "mix"}), [])


def test_members_of_a_class_share_the_widest_range(graph: Graph, tmp_path: Path) -> None:
    data = spool_calibration(graph, batches(images(16)[0], 4), tmp_path)
    observations = observe(graph, data.scoring, frozenset({"stem", "mix", "head"}), [])
    shared = TensorClass(tensors=("stem", "mix", "not observed"))
    params = static_params(observations, [shared], "minmax", RULES, {})
    assert set(params) == {"stem", "mix", "head"}
    assert params["stem"] == params["mix"]
    stem, mix = observations.tensors["stem"], observations.tensors["mix"]
    assert params["stem"] == activation_params(*stem.merged_range(mix), RULES)
    alone = choose_range(observations.tensors["head"], "minmax", RULES)
    assert params["head"] == activation_params(*alone, RULES)


def test_batches_are_counted_and_cut_along_the_batch_only(tmp_path: Path) -> None:
    class Shifted(nn.Module):
        def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            return x + shift

    graph = capture(Shifted(), (torch.randn(4, 3), torch.randn(3)), {})
    x, shift = torch.randn(6, 3), torch.randn(3)
    assert batch_size(graph, [x, shift]) == 6
    first, second = cut(graph, [x, shift], 2, 5)
    assert torch.equal(first, x[2:5])
    assert torch.equal(second, shift)
