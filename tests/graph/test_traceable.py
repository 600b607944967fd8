"""What stands between a model and torch.export: caches in the outputs, masks that are looked at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import transformer
from torch.utils import _pytree as pytree

from advisor.errors import CaptureError
from advisor.passes.capture import capture
from tests.graph.models import seeded, tokens, vectors


class Cache:
    """Holds tensors, and torch knows nothing of it."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys


class WithCache(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.linear(x)
        return {"logits": y, "kept": (Cache(y), y.exp()), "cache": Cache(y)}


def test_what_no_graph_can_return_is_left_out_and_said() -> None:
    model = seeded(WithCache())
    x = vectors(3)
    graph = capture(model, (x,), {})
    assert graph.output_names == ("logits", "kept_1")
    assert [note.partition(" ")[0] for note in graph.notes] == [
        "output['kept'][0]",
        "output['cache']",
    ]
    assert all("Cache" in note for note in graph.notes)
    with torch.no_grad():
        found, wanted = graph.module(x), model(x)
    assert found["kept"][0] is None
    assert found["cache"] is None
    torch.testing.assert_close(found["logits"], wanted["logits"])
    torch.testing.assert_close(found["kept"][1], wanted["kept"][1])
    assert isinstance(wanted["cache"], Cache)  # the user's model still returns it


class OnlyCache(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Cache:
        return Cache(self.linear(x))


def test_a_model_that_returns_only_an_object_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"no tensor .* but Cache; .*register_dataclass"):
        capture(OnlyCache().eval(), (vectors(1),), {})


class Translator(nn.Module):
    """torch's own encoder and decoder, with the mask that everybody builds in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(19, 8)
        self.transformer = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
        self.head = nn.Linear(8, 19)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        mixed = self.transformer(self.embed(source), self.embed(target), tgt_mask=mask)
        logits: Tensor = self.head(mixed)
        return logits


def test_transformers_of_torch_take_a_causal_mask() -> None:
    model = seeded(Translator())
    before = vars(transformer)["_detect_is_causal_mask"]
    graph = capture(model, (tokens(1, 6), tokens(1, 4)), {})
    assert vars(transformer)["_detect_is_causal_mask"] is before
    for batch, length in ((1, 4), (3, 5)):
        given = tokens(batch, 6, seed=2), tokens(batch, length, seed=3)
        with torch.no_grad():
            torch.testing.assert_close(graph.module(*given), model(*given), atol=1e-5, rtol=1e-5)


def test_a_cache_of_transformers_is_left_out() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=19, n_embd=8, n_layer=1, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    graph = capture(model, (), {"input_ids": tokens(1)})
    assert graph.output_names == ("logits",)
    assert graph.notes[0].startswith("output['past_key_values'] is left out")
    ids = tokens(2, 9)
    with torch.no_grad():
        found = pytree.tree_leaves(graph.module(input_ids=ids))
        torch.testing.assert_close(found[0], model(input_ids=ids).logits)
