"""Models of these tests, with weights that are the same each time, and what they run on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in evaluation mode with weights drawn from a seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers from a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Chain(nn.Module):
    """(B, width) to (B, outputs) through ``count`` Linears with ReLU between them."""

    def __init__(self, count: int, width: int = 64, outputs: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(count)])
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = functional.relu(layer(x))
        scores: Tensor = self.head(x)
        return scores


class Mixed(nn.Module):
    """(B, 3, 16, 16) to (B, 5): strided, grouped, dilated and transposed convolutions, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=4)
        self.up = nn.ConvTranspose2d(16, 16, 3, stride=2, padding=1, output_padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.grouped(functional.gelu(self.stem(x))))
        x = functional.max_pool2d(functional.hardswish(self.norm(self.up(x))), 2)
        x = functional.interpolate(x, scale_factor=2.0, mode="bilinear")
        x = functional.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        scores: Tensor = self.head(x.mean(dim=(2, 3)))
        return scores


class Attention(nn.Module):
    """(B, T, 32) to (B, T, 32): RMSNorm, causal attention, gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(32, eps=1e-6)
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)
        self.gate = nn.Linear(32, 64)
        self.up = nn.Linear(32, 64)
        self.down = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        rows, steps, _ = x.shape
        heads = self.qkv(self.norm(x)).reshape(rows, steps, 3, 4, 8).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, steps, 32))
        made: Tensor = x + self.down(functional.silu(self.gate(x)) * self.up(x))
        return made


class Recurrent(nn.Module):
    """(B, T, 8) to (B, 6): a bidirectional LSTM, a GRU and a one-dimensional convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 12, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(24, 10, batch_first=True)
        self.head = nn.Linear(10, 4)
        self.conv = nn.Conv1d(4, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.head(self.gru(self.lstm(x)[0])[0])
        scores: Tensor = self.conv(steps.transpose(1, 2)).mean(dim=-1)
        return scores


class Solver(nn.Module):
    """An operator that Apple's formats do not have."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.special.bessel_j0(x)
        return found


class Eigen(nn.Module):
    """A Linear, then an operator of a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.solver = Solver()

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.solver(self.linear(x))
        return values
