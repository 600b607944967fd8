"""The question of the comparison: models, data, formats, budgets and seeds, fixed in advance.

Every layer with a weight takes one of four formats, and activations stay in float32: what the
other tools choose is the bits of weights, so that is what all are asked for. Tables of embeddings
stay in 8 bits, because only some of the tools choose for them. Needs nothing of the advisor, so
that the tools' own environment can ask the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from advisor.passes.divergence import OutputKind
from benchmarks.models import Inputs, make_case

SCHEMES: Final = ("fp16", "w8", "w4-g32", "w2-g32")
"""16 bits, 8 per channel, 4 and 2 per block of 32 weights of a row; rounded for least squares."""

BUDGETS: Final = (0.08, 0.2, 0.4, 0.65)
"""Bytes of the weights, as a share of the way from all in 2 bits to all in 8."""

FIXED: Final = "w8"
"""What every group of layers with an embedding takes."""

MODELS: Final = ("digits_cnn", "digits_mobilenet", "digits_vit", "byte_lm", "minilm")

SEEDS: Final = (0, 1, 2, 3, 4)
"""Each draws other planning data, and the random signs of the probes."""

PLANNING: Final[Mapping[str, int]] = {
    "digits_cnn": 192,
    "digits_mobilenet": 192,
    "digits_vit": 192,
    "byte_lm": 64,
    "minilm": 64,
}
"""Samples to plan with, drawn from the pool by the seed; a sequence is one sample."""

UNUSED: Final[Mapping[str, int]] = {"byte_lm": 64, "minilm": 128}
"""Samples that every plan is judged by and no plan sees, where that is not the whole set."""

BATCH: Final = 16
TEXT_POOL: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One model. pool: inputs to plan with; a seed draws ``count``. unused: those to judge with."""

    name: str
    model: nn.Module
    kind: OutputKind
    pool: Inputs
    unused: Inputs
    count: int
    batch: int = BATCH

    def planning(self, seed: int) -> list[Inputs]:
        """The batches that planning with this seed sees; every second one is held out."""
        size = len(next(iter(self.pool.values())))
        generator = torch.Generator().manual_seed(1000 + seed)
        drawn = torch.randperm(size, generator=generator)[: self.count]
        parts = torch.split(drawn, self.batch)
        return [{name: value[part] for name, value in self.pool.items()} for part in parts]


def ask(name: str) -> Question:
    """The question about one model.

    Raises:
        KeyError: no such model.
    """
    case = make_case(name)
    pool, unused = _joined(case.calibration), _joined(case.evaluation)
    if name == "byte_lm":
        from examples import byte_lm

        pool = {"input_ids": byte_lm.windows("calibration", TEXT_POOL)[:, :-1]}
    if name == "minilm":
        from examples import minilm

        texts = minilm.sentences()[minilm.CALIBRATION + minilm.EVALUATION :][:TEXT_POOL]
        pool = _joined(minilm.in_batches(texts))
    return Question(
        name=name,
        model=case.model,
        kind=case.kind,
        pool=pool,
        unused=_spread(unused, UNUSED.get(name)),
        count=PLANNING[name],
    )


def budget_bytes(sizes: Sequence[Sequence[float] | npt.NDArray[np.float64]], share: float) -> float:
    """A budget from the bytes of every group's candidates, in the order of ``SCHEMES``.

    Groups without a choice count in full.
    """
    least = sum(row[-1] for row in sizes)
    most = sum(row[min(1, len(row) - 1)] for row in sizes)
    return float(least + share * (most - least))


def _joined(batches: Sequence[Inputs]) -> Inputs:
    return {name: torch.cat([each[name] for each in batches]) for name in batches[0]}


def _spread(inputs: Inputs, count: int | None) -> Inputs:
    """So many samples, evenly spaced."""
    size = len(next(iter(inputs.values())))
    if count is None or count >= size:
        return inputs
    at = torch.linspace(0, size - 1, count).long()
    return {name: value[at] for name, value in inputs.items()}
