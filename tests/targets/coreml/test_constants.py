"""What is constant in a model, and operators that are written otherwise for coremltools."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from advisor.targets.coreml import TARGET
from tests.targets.making import Quantizer
from tests.targets.models import draw, seeded


class Places(nn.Module):
    """(B, T) ids to (B, T, 8), with a table that is read at places known once T is."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 8), nn.Embedding(9, 8)
        self.head = nn.Linear(8, 8)

    def forward(self, ids: Tensor) -> Tensor:
        moved: Tensor = self.head(self.words(ids) + self.places(torch.arange(ids.shape[1])))
        return moved


class Choosing(nn.Module):
    """Operators that coremltools has no form of, on truth values and beside numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(x)
        inside = (y > -0.2) & (y < 0.2) | ~(x > 0)
        kept = torch.where(inside, y, -3.0) + torch.where(inside, 0.5, y)
        return kept + y.new_ones(8) * y.new_zeros(8) + torch.where(inside, 1.0, 2.0)


class Named(nn.Module):
    """Arguments that torch takes by name only, and coremltools by place or not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(x)
        terms = torch.add(y, x, alpha=2) * torch.sub(y, x, alpha=3)
        terms = terms + torch.rsub(y, x, alpha=2) + torch.addcmul(y, x, y, value=0.5)
        spread = y.var(-1, correction=0, keepdim=True) + y.std(-1, keepdim=True) + y.var()
        return terms * spread + functional.gelu(y, approximate="tanh") + functional.gelu(x)


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "w8"])
def test_a_table_read_at_known_places_stays_a_layer(
    scheme: str, make_quantized: Quantizer, tmp_path: Path
) -> None:
    ids = torch.tensor([[1, 19, 0, 7, 7, 3], [2, 2, 5, 11, 4, 6]])
    model = seeded(Places())
    artifact = TARGET.emit(make_quantized(model, (ids,), scheme), tmp_path)
    assert artifact.verify().ok
    found = artifact.read_back()
    assert {name: layer.scheme for name, layer in found.items()} == dict.fromkeys(
        ("words", "places", "head"), scheme
    )
    if scheme == "fp32":
        torch.testing.assert_close(artifact.run(ids), model(ids))


class Masked(nn.Module):
    """A causal mask of infinities, built in forward; a bilinear layer; edges; a cosine."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.pair = nn.Linear(8, 8), nn.Bilinear(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(x)
        mask = torch.full((4, 4), float("-inf")).triu(1)
        seen = torch.softmax(y @ x.transpose(-2, -1) + mask, dim=-1) @ y
        edged = functional.pad(seen.unsqueeze(1), (1, 2, 2, 1), mode="reflect")
        paired: Tensor = self.pair(seen, x)
        alike = functional.cosine_similarity(seen, x)
        parts = (edged, paired, y.tril(-1), alike)
        return torch.cat([part.flatten(1) for part in parts], dim=1)


@pytest.mark.parametrize("kind", [Choosing, Named, Masked])
def test_operators_without_a_form_compute_the_same(
    kind: type[nn.Module], make_quantized: Quantizer, tmp_path: Path
) -> None:
    model, x = seeded(kind()), (draw(2, 4, 8) if kind is Masked else draw(4, 8)) * 3
    artifact = TARGET.emit(make_quantized(model, (x,), "fp32"), tmp_path)
    assert artifact.verify().ok
    torch.testing.assert_close(artifact.run(x), model(x))
