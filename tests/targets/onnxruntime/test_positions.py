"""Tables of embeddings that are read at places known beforehand, as positions are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from advisor.api import advise


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(50, 64), nn.Embedding(16, 64)
        self.ids: Tensor
        self.register_buffer("ids", torch.arange(16)[None])

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.word(x) + self.position(self.ids[:, : x.shape[1]])
        return found


@pytest.mark.parametrize("sequence", [None, 8])
def test_int8_rows_at_known_places_run_on_every_processor(
    tmp_path: Path, sequence: int | None
) -> None:
    """Without VNNI, ONNX Runtime makes constants uint8, and needs the zero point's shape then."""
    torch.manual_seed(0)
    model = Positions().eval()
    plan = advise(
        model,
        target="intel-vnni",
        calibration=[torch.randint(0, 50, (4, 8)) for _ in range(3)],
        pin={"*": "w8"},
        sequence=sequence,
        trials=1,
        cache=False,
    )
    artifact = plan.compile(tmp_path)
    assert artifact.verify().ok
    ids = torch.randint(0, 50, (2, 8))
    simulated = plan.apply()(ids)
    assert torch.allclose(artifact.run(ids), simulated, atol=1e-6)
    assert {layer.scheme for layer in plan.layers} == {"w8"}
