"""Tables for embeddings: they read ids, so that nothing can weigh the errors of their weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advisor import advise
from tests.targets.models import seeded


class Language(nn.Module):
    """(B, T) ids to (B, T, 40) scores; the last Linear may have the embedding's weight."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 32)
        self.middle = nn.Linear(32, 32)
        self.head = nn.Linear(32, 40, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.head(self.middle(self.words(ids)))
        return scores


@pytest.mark.parametrize("tied", [False, True])
def test_only_what_reads_numbers_weighs_errors(tied: bool) -> None:
    ids = torch.randint(0, 40, (8, 5), generator=torch.Generator().manual_seed(0))
    plan = advise(
        seeded(Language(tied=tied)),
        target="m2",
        calibration=[ids[:4], ids[4:]],
        schemes=["lut4"],
        trials=1,
        cache=False,
    )
    found = {
        layer.name: {o.algorithm for o in layer.options if o.scheme == "lut4" and not o.reason}
        for layer in plan.layers
    }
    both = {"kmeans", "kmeans-weighted"}
    assert found == {"words": both if tied else {"kmeans"}, "middle": both, "head": both}
