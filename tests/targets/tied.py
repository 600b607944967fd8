"""A decoder whose head reads its table of tokens, and plans of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advisor import Plan, advise

VOCABULARY, WIDTH, TOKENS = 1200, 64, 8


class Decoder(nn.Module):
    """Token ids (B, T) to scores (B, T, vocabulary), by the table that looked them up."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.middle(self.table(ids))))
        return scores


def batches(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(VOCABULARY, (2, TOKENS), generator=generator) for _ in range(count)]


def decoder(*, tied: bool = True) -> Decoder:
    torch.default_generator.manual_seed(0)
    return Decoder(tied=tied).eval()


def plan_of(scheme: str, *, tied: bool = True, target: str = "intel-vnni") -> Plan:
    return advise(
        decoder(tied=tied),
        target=target,
        calibration=batches(),
        schemes=[scheme],
        pin={"head": scheme, "middle": "fp32"},
        trials=1,
    )
