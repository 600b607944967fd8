"""Small models with everything that a plan for TFLite must handle, with fixed random weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode, with random but well-scaled parameters, gains of norms too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            width = max(1, parameter.numel() // max(1, parameter.shape[0]))
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / math.sqrt(width) if parameter.ndim > 1 else 1 + 0.3 * noise)
    return model.eval()


def images(batch: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def tokens(batch: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 50, (batch, 6), generator=torch.Generator().manual_seed(seed))


class ResidualNet(nn.Module):
    """Strided stem, padded max pool, residual add, concat, pad, average pool, mean, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.side = nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        x = F.relu(x + self.body(x))
        x = torch.cat([x, F.relu(self.side(x))], 1)
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class DepthwiseNet(nn.Module):
    """As in MobileNet: depthwise and grouped convolutions, ReLU6 by both of its names."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 16, 1, bias=False)
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.act = nn.ReLU6()
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.wide(x))
        x = F.relu6(self.depthwise(x))
        x = F.hardtanh(self.grouped(x), -0.5, 0.75)
        logits: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class Encoder(nn.Module):
    """Token ids to a dict: embedding, LayerNorm with a gain, attention, GELU."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], 4, -1).transpose(1, 2)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.embed(input_ids)
        h = self.norm1(x)
        mixed = F.scaled_dot_product_attention(
            self.split(self.q(h)), self.split(self.k(h)), self.split(self.v(h))
        )
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        last = x + self.down(F.gelu(self.up(self.norm2(x))))
        return {"last": last, "pooled": last.mean(1)}


class TiedNet(nn.Module):
    """The embedding is also the output matrix, and two linears share one weight."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.head = nn.Linear(width, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = torch.tanh(self.first(self.embed(input_ids)))
        logits: Tensor = self.head(torch.tanh(self.second(x)))
        return logits


class TwoInputs(nn.Module):
    """Two images in, two tensors of different kinds out, one of them behind a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        a, b = (F.relu(self.conv(x)).mean((2, 3)) for x in (left, right))
        return {"score": self.head(a + b), "label": self.head(a * b).argmax(-1)}
