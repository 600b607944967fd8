"""Architectures that people have go through unmodified: captured, planned, compiled, verified."""

from __future__ import annotations

import pytest
import torch

from advisor.inputs import normalise_inputs
from advisor.passes.capture import capture
from tests.zoo.models import ARCHITECTURES, Architecture, architecture
from tests.zoo.sweep import MIXED, capture_problem, examine

QUICK = frozenset({"gpt2", "vit", "resnet", "siamese", "rotary"})
"""One of each kind; they run in every test run, the others only in the slow one. All of them go
all the way in ``benchmarks/onnxruntime/architectures.py``."""

LISTED = [
    pytest.param(entry, id=entry.name, marks=() if entry.name in QUICK else pytest.mark.slow)
    for entry in ARCHITECTURES
]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs have no part in this, and neither has the number of cores."""
    monkeypatch.setenv("ADVISOR_MEASURE", "never")
    torch.set_num_threads(1)


def test_the_list_is_broad() -> None:
    names = [entry.name for entry in ARCHITECTURES]
    assert len(names) == len(set(names))
    assert len(names) >= 45


@pytest.mark.parametrize("entry", [entry for entry in LISTED if not entry.marks])
def test_it_goes_all_the_way(entry: Architecture) -> None:
    if entry.source.startswith("transformers"):
        pytest.importorskip("transformers")
    outcome = examine(entry, ("w8a8", "w4-g32"), trials=1)
    assert outcome.ok, outcome.problem or outcome.schemes


@pytest.mark.parametrize("entry", [entry for entry in LISTED if entry.marks])
def test_it_is_captured(entry: Architecture) -> None:
    """At every batch the graph computes what the model does; the whole way is a benchmark.

    Of blocks that are all alike one is enough: what another does to a graph, gpt2 shows above.
    """
    if entry.source.startswith("transformers"):
        pytest.importorskip("transformers")
    model = entry.build(shallow=True)
    given = normalise_inputs(model, entry.inputs(1))
    graph = capture(model, given.args, given.kwargs)
    assert graph.batch is None, graph.notes
    assert not capture_problem(entry, model, graph)


LITERT_QUICK = ("siamese", "separable")
"""Several inputs and a dict of outputs; every scheme in one image network."""

LITERT_SLOW = ("encoder-decoder", "unet", "gru", "audio")


@pytest.mark.parametrize(
    "name", [*LITERT_QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LITERT_SLOW)]
)
def test_it_goes_through_litert(name: str) -> None:
    """Under schemes in turn: read back, integers equal, layers and outputs as simulated."""
    pytest.importorskip("litert_torch")
    entry = architecture(name)
    if entry.source.startswith("transformers"):
        pytest.importorskip("transformers")
    outcome = examine(entry, (MIXED,), runtime="tflite", trials=1)
    assert outcome.ok, outcome.problem or outcome.schemes
    narrow = [count for scheme, count in outcome.mixed.items() if scheme != "fp32"]
    assert len(narrow) >= min(4, sum(narrow)) > 0
    assert outcome.parts[MIXED]["delegated"] >= 1
