"""Models in plain torch: what people write themselves, with the operators libraries seldom use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Maker = Callable[[], nn.Module]


class UNet(nn.Module):
    """GroupNorm, skip connections, transposed convolutions up."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.enter = self._block(3, channels)
        self.down = self._block(channels, 2 * channels)
        self.middle = self._block(2 * channels, 4 * channels)
        self.up1 = nn.ConvTranspose2d(4 * channels, 2 * channels, 2, stride=2)
        self.join1 = self._block(4 * channels, 2 * channels)
        self.up2 = nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1)
        self.join2 = self._block(2 * channels, channels)
        self.mask = nn.Conv2d(channels, 2, 1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.GroupNorm(4, outputs),
            nn.SiLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding="same"),
            nn.GroupNorm(4, outputs),
            nn.SiLU(inplace=True),
        )

    def forward(self, image: Tensor) -> Tensor:
        fine = self.enter(image)
        coarse = self.down(F.max_pool2d(fine, 2))
        deep = self.middle(F.avg_pool2d(coarse, 2))
        coarse = self.join1(torch.cat([self.up1(deep), coarse], dim=1))
        fine = self.join2(torch.cat([self.up2(coarse), fine], dim=1))
        logits: Tensor = self.mask(fine)
        return logits


class Siamese(nn.Module):
    """One encoder for two images, a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 24),
        )
        self.head = nn.Linear(48, 4)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        one, two = self.encoder(left), self.encoder(right)
        similarity = F.cosine_similarity(one, two)
        return {"similarity": similarity, "logits": self.head(torch.cat([one, two], dim=-1))}


class LstmClassifier(nn.Module):
    """Two bidirectional layers; the last step's states decide."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.lstm = nn.LSTM(16, 24, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(self.embed(tokens))
        logits: Tensor = self.head(torch.cat([hidden[-2], hidden[-1]], dim=-1))
        return logits


class GruTagger(nn.Module):
    """One label per step of a sequence of features."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(12, 16)
        self.gru = nn.GRU(16, 24, batch_first=True)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 5)

    def forward(self, steps: Tensor) -> Tensor:
        states, _ = self.gru(F.gelu(self.enter(steps)))
        logits: Tensor = self.head(self.norm(states))
        return logits


class AudioNet(nn.Module):
    """Raw audio through strided and dilated one-dimensional convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(1, 16, 16, stride=4, padding=6),
            nn.BatchNorm1d(16),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv1d(16, 32, 3, padding=2, dilation=2),
            nn.BatchNorm1d(32),
            nn.PReLU(32),
            nn.MaxPool1d(4),
            nn.Conv1d(32, 32, 3, padding="same", groups=4),
            nn.ELU(),
        )
        self.head = nn.Linear(64, 6)

    def forward(self, wave: Tensor) -> Tensor:
        x = self.features(wave)
        logits: Tensor = self.head(torch.cat([x.mean(-1), x.std(-1)], dim=-1))
        return logits


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        result: Tensor = x + self.channels(self.norm2(x))
        return result


class Mixer(nn.Module):
    """Patches mixed by one perceptron across tokens and one across channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 8, stride=8)
        self.blocks = nn.Sequential(*(MixerBlock(16, 32) for _ in range(2)))
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits


class SeparableNet(nn.Module):
    """Depthwise and pointwise convolutions with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
        )
        self.depth = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
        )
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(16, 4, 1),
            nn.ReLU(),
            nn.Conv2d(4, 16, 1),
            nn.Hardsigmoid(),
        )
        self.point = nn.Sequential(
            nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.Hardswish()
        )
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.depth(self.stem(image))
        x = self.point(x * self.squeeze(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class SuperResolution(nn.Module):
    """Residual convolutions, pixel shuffle, and a bilinear path around them."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 16, 5, padding=2, padding_mode="reflect")
        self.inner = nn.Conv2d(16, 16, 3, padding=1)
        self.leave = nn.Conv2d(16, 12, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.enter(image))
        x = x + torch.tanh(self.inner(x))
        coarse = F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
        result: Tensor = self.shuffle(self.leave(x)) + coarse
        return result


class PyramidDetector(nn.Module):
    """Two scales joined by upsampling; boxes and scores per scale as nested tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.SiLU())
        self.coarse = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.SiLU())
        self.lateral = nn.Conv2d(32, 16, 1)
        self.boxes = nn.Conv2d(16, 8, 3, padding=1)
        self.scores = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, image: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        fine = self.fine(image)
        coarse = self.lateral(self.coarse(fine))
        joined = fine + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        return self._heads(joined), self._heads(coarse)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        boxes = self.boxes(x)
        boxes = boxes.reshape(boxes.shape[0], 2, 4, -1).permute(0, 3, 1, 2)
        return boxes.sigmoid(), self.scores(x).flatten(2).softmax(1)


class EncoderDecoder(nn.Module):
    """nn.Transformer with learned positions and a causal mask built in forward."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.source = nn.Embedding(40, width)
        self.target = nn.Embedding(40, width)
        self.position = nn.Parameter(torch.randn(1, 24, width))
        self.transformer = nn.Transformer(width, 2, 1, 1, 64, batch_first=True, dropout=0.1)
        self.head = nn.Linear(width, 40)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        length = target.shape[1]
        mask = torch.full((length, length), float("-inf"), device=target.device).triu(1)
        one = self.source(source) + self.position[:, : source.shape[1]]
        two = self.target(target) + self.position[:, :length]
        logits: Tensor = self.head(self.transformer(one, two, tgt_mask=mask))
        return logits


class Recommender(nn.Module):
    """Categories and numbers: embeddings crossed by einsum, a bilinear score."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(100, 16), nn.Embedding(200, 16)
        self.numbers = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 16))
        self.cross = nn.Bilinear(16, 16, 8)
        self.head = nn.Sequential(nn.Linear(8 + 3, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, user: Tensor, item: Tensor, numbers: Tensor) -> Tensor:
        parts = torch.stack([self.user(user), self.item(item), self.numbers(numbers)], dim=1)
        products = torch.einsum("bid,bjd->bij", parts, parts)
        pairs = products[:, [0, 0, 1], [1, 2, 2]]
        crossed = self.cross(parts[:, 0], parts[:, 1])
        score: Tensor = self.head(torch.cat([crossed, pairs], dim=-1)).squeeze(-1)
        return score


class RotaryAttention(nn.Module):
    """Rotary positions as complex numbers, the way the first LLaMA code has them."""

    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(40, width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, 40)
        rates = 1.0 / 100.0 ** (torch.arange(0, width // heads, 2) / (width // heads))
        angles = torch.outer(torch.arange(24).float(), rates)
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles))

    def _rotate(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        turns: Tensor = self.turns[: x.shape[1], None]  # type: ignore[index]  # a buffer
        return torch.view_as_real(pairs * turns).flatten(3).type_as(x)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = (part.view(*part.shape[:2], self.heads, -1) for part in self.qkv(x).chunk(3, -1))
        q, k, v = (part.transpose(1, 2) for part in (self._rotate(q), self._rotate(k), v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        logits: Tensor = self.head(x + self.out(mixed.transpose(1, 2).flatten(2)))
        return logits


def _image(batch: int, seed: int = 7) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def _floats(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def _ids(limit: int, *shape: int) -> Tensor:
    return torch.randint(0, limit, shape, generator=torch.Generator().manual_seed(7))


OWN: dict[str, tuple[Maker, Callable[[int], Any]]] = {
    "unet": (UNet, _image),
    "siamese": (Siamese, lambda batch: {"left": _image(batch), "right": _image(batch, 8)}),
    "lstm": (LstmClassifier, lambda batch: _ids(50, batch, 12)),
    "gru": (GruTagger, lambda batch: _floats(batch, 10, 12)),
    "audio": (AudioNet, lambda batch: _floats(batch, 1, 256)),
    "mixer": (Mixer, _image),
    "separable": (SeparableNet, _image),
    "super-resolution": (SuperResolution, _image),
    "pyramid-detector": (PyramidDetector, _image),
    "encoder-decoder": (
        EncoderDecoder,
        lambda batch: (_ids(40, batch, 10), _ids(40, batch, 8)),
    ),
    "recommender": (
        Recommender,
        lambda batch: (_ids(100, batch), _ids(200, batch), _floats(batch, 5)),
    ),
    "rotary": (RotaryAttention, lambda batch: _ids(40, batch, 12)),
}
"""Builder and inputs by name."""
