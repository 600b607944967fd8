"""The transformer block of the example models, plain PyTorch that torch.export captures whole."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Pre-norm attention and a GELU perceptron, each added to its input: (B, T, D) to (B, T, D).

    causal: position t sees only positions up to t.
    """

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions, then the channels."""
        x = x + self._attend(self.norm1(x))
        mixed: Tensor = self.down(functional.gelu(self.up(self.norm2(x))))
        return x + mixed

    def _attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        attended: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return attended
