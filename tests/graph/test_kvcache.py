"""The bytes of a decoder's cache against the formula of its configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from advisor import advise
from advisor.errors import UsageError
from advisor.passes.attention import open_products
from advisor.passes.capture import capture
from advisor.passes.graph import Graph
from advisor.passes.kvcache import cached_elements
from advisor.passes.shapes import deployment_inputs, infer_shapes


class Grouped(nn.Module):
    """(B, T, 32): a block whose 4 heads of 8 share 2 heads of keys and values, and a head."""

    def __init__(self, spelled: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 16)
        self.head = nn.Linear(32, 5)
        self.spelled = spelled

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if not self.spelled:
            return functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        scores = query @ key.transpose(-2, -1) / 8**0.5
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = functional.softmax(scores.masked_fill(hidden, -1e9), dim=-1)
        mixed: Tensor = functional.dropout(weights, 0.1, self.training) @ value
        return mixed

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).unflatten(-1, (4, 8)).transpose(1, 2)
        key, value = (
            layer(x).unflatten(-1, (2, 8)).transpose(1, 2).repeat_interleave(2, dim=1)
            for layer in (self.key, self.value)
        )
        scores: Tensor = self.head(self.attend(query, key, value).transpose(1, 2).flatten(2))
        return scores


class Crossed(nn.Module):
    """Attention of a sequence over another one, of another length."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        read = self.key(memory)
        return functional.scaled_dot_product_attention(self.query(x), read, read)


def elements(graph: Graph, batch: int) -> float:
    return cached_elements(graph, infer_shapes(graph.module, deployment_inputs(graph, batch, None)))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("spelled", [False, True])
def test_heads_are_counted_before_they_are_repeated(spelled: bool, batch: int) -> None:
    graph = capture(Grouped(spelled).eval(), (torch.randn(2, 6, 32),), {})
    assert elements(graph, batch) == batch * 2 * 2 * 8
    assert elements(open_products(graph), batch) == batch * 2 * 2 * 8


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_models_of_transformers_keep_what_their_configuration_says(
    kind: str, attention: str
) -> None:
    transformers: Any = pytest.importorskip("transformers")
    if kind == "gpt2":
        config = transformers.GPT2Config(
            n_layer=3, n_embd=32, n_head=4, vocab_size=50, n_positions=32, bos_token_id=0,
            eos_token_id=0, attn_implementation=attention,
        )  # fmt: skip
        model, wanted = transformers.GPT2LMHeadModel(config), 2 * 3 * 32
    else:
        config = transformers.LlamaConfig(
            num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=1,
            intermediate_size=48, vocab_size=50, attn_implementation=attention,
        )  # fmt: skip
        model, wanted = transformers.LlamaForCausalLM(config), 2 * 2 * 1 * 8
    ids = torch.randint(0, 50, (2, 7))
    graph = capture(model.eval(), (), {"input_ids": ids})
    assert elements(graph, 1) == wanted


def test_another_sequence_is_not_kept() -> None:
    graph = capture(Crossed().eval(), (torch.randn(2, 3, 8), torch.randn(2, 5, 8)), {})
    assert elements(graph, 1) == 0


def test_a_context_takes_its_bytes_of_memory() -> None:
    """In float16 on TensorRT; a plan and the same plan with a context."""
    x = torch.randn(4, 6, 32)
    plans = [
        advise(
            Grouped(spelled=False).eval(), target="l4", calibration=[x, x + 1], batch=2,
            schemes=["fp32"], context=context, trials=1, cache=False,
        )
        for context in (None, 100_000)
    ]  # fmt: skip
    without, held = (plan.predicted.memory_bytes for plan in plans)
    assert without is not None
    assert held is not None
    assert held.value - without.value == 2 * 32 * 100_000 * 2
    moved = plans[1].pin("head", "fp32").predicted.memory_bytes
    assert moved is not None
    assert moved.value == held.value


def test_a_model_without_attention_has_no_context() -> None:
    with pytest.raises(UsageError, match="no attention of a sequence over itself"):
        advise(
            nn.Sequential(nn.Linear(4, 4)), target="intel-vnni", inputs=torch.randn(2, 4), context=9
        )
