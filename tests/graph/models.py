"""Small models of every shape the passes must know, with fixed random weights."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advisor.passes.capture import capture
from advisor.passes.graph import Graph


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in evaluation mode, every parameter and statistic random but well scaled."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            width = max(1, parameter.numel() // max(1, parameter.shape[0]))
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / math.sqrt(width) if parameter.ndim > 1 else 1 + 0.3 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def image(batch: int, size: int = 8, channels: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def tokens(batch: int, length: int = 6, vocabulary: int = 19, seed: int = 1) -> Tensor:
    return torch.randint(
        0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed)
    )


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(inner)))


class ResidualCNN(nn.Module):
    """Stem, max pool, two residual blocks (one depthwise each), global pool, linear head."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.blocks = nn.Sequential(*(ResidualBlock(8) for _ in range(blocks)))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.pool(F.relu(self.norm(self.stem(x)))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class DecoderLayer(nn.Module):
    """Pre-norm causal attention and a gated feed-forward, in plain torch."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.RMSNorm(width, eps=1e-6)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.norm2 = nn.RMSNorm(width, eps=1e-6)
        self.gate = nn.Linear(width, 2 * width, bias=False)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = self.split(self.q(h)), self.split(self.k(h)), self.split(self.v(h))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        result: Tensor = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return result


class Decoder(nn.Module):
    """Token ids to logits; the embedding is also the output matrix."""

    def __init__(self, layers: int = 4, width: int = 16, vocabulary: int = 19) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.zeros(1, 32, width))
        self.layers = nn.ModuleList(DecoderLayer(width, 2) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids) + self.position[:, : input_ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits


class Encoder(nn.Module):
    """A convolution with batch norm and a Conv1D-style product (weight stored as in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.weight = nn.Parameter(torch.zeros(4, 6))
        self.bias = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.relu(self.norm(self.conv(x))).mean((2, 3))
        return torch.addmm(self.bias, pooled, self.weight)


class SharedEncoder(nn.Module):
    """One encoder for both images of a dict; a dict of two tensors out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.head = nn.Linear(6, 2)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        left, right = self.encoder(batch["left"]), self.encoder(batch["right"])
        return {"score": (left * right).sum(-1), "logits": self.head(left - right)}


class ConvNet1d(nn.Module):
    """(batch, 4, length) to a tuple of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 3, padding=1)
        self.norm = nn.BatchNorm1d(6)
        self.out = nn.Conv1d(6, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.gelu(self.norm(self.conv(x)))
        return self.out(h), h.amax(-1)


class LstmClassifier(nn.Module):
    """Token ids through an LSTM to logits; the whole state is used."""

    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(19, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=batch_first)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        sequence, (hidden, _) = self.lstm(self.embed(ids))
        logits: Tensor = self.head(hidden[-1] + sequence.mean(1 if self.lstm.batch_first else 0))
        return logits


class Functional(nn.Module):
    """Weights that no layer module owns, and constants that only weights make."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(5, 4))
        self.shift = nn.Parameter(torch.zeros(5))
        self.fused = nn.Parameter(torch.zeros(10, 5))
        self.gain = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(F.linear(x, self.first, self.shift))
        a, b = self.fused.chunk(2)
        mask = torch.triu(torch.ones(5, 5), 1)
        return F.linear(h, a) * torch.sigmoid(h @ b.t()) + mask.sum(0) * self.gain.sum()


class Masked(nn.Module):
    """Keyword inputs: ids, a mask, and one that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(19, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        x = self.embed(input_ids)
        mixed, _ = self.attention(x, x, x, key_padding_mask=attention_mask == 0)
        pooled = (mixed * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)
        logits: Tensor = self.head(pooled)
        return logits if bias is None else logits + bias


class Case(NamedTuple):
    """A model and its example inputs at a batch."""

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012  # never changed


def masked_inputs(batch: int, length: int = 6) -> dict[str, Any]:
    mask = torch.ones(batch, length)
    mask[:, length - 1] = 0.0
    return {"input_ids": tokens(batch, length), "attention_mask": mask}


def pair_inputs(batch: int) -> dict[str, Tensor]:
    return {"left": image(batch, seed=1), "right": image(batch, seed=2)}


def signal(batch: int) -> Tensor:
    return torch.randn(batch, 4, 10, generator=torch.Generator().manual_seed(3))


def vectors(batch: int, width: int = 4) -> Tensor:
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(4))


def make_case(name: str, batch: int) -> Case:
    """Inputs differ between batches only in the number of samples."""
    match name:
        case "residual":
            return Case(seeded(ResidualCNN()), (image(batch),))
        case "decoder":
            return Case(seeded(Decoder(layers=2)), (tokens(batch),))
        case "shared":
            return Case(seeded(SharedEncoder()), (pair_inputs(batch),))
        case "conv1d":
            return Case(seeded(ConvNet1d()), (signal(batch),))
        case "lstm":
            return Case(seeded(LstmClassifier()), (tokens(batch),))
        case "functional":
            return Case(seeded(Functional()), (vectors(batch),))
        case "masked":
            return Case(seeded(Masked()), (), masked_inputs(batch))
        case _:
            raise KeyError(name)


CASES = ("residual", "decoder", "shared", "conv1d", "lstm", "functional", "masked")


@cache
def captured(name: str) -> tuple[Case, Graph]:
    """A case at batch 1 and its graph; shared by tests, so never to be changed."""
    case = make_case(name, 1)
    return case, capture(case.model, case.args, case.kwargs)
