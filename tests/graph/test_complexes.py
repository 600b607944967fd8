"""Complex arithmetic as pairs of reals, against torch's own complex numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from advisor.passes.capture import capture


class Rotate(nn.Module):
    """Pairs of features as complex numbers, changed, and back; a layer on either side."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change
        self.enter, self.leave = nn.Linear(4, 6), nn.LazyLinear(2)
        turns = torch.polar(torch.ones(5, 3), torch.arange(15.0).reshape(5, 3))
        self.register_buffer("turns", turns)

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(self.enter(x).reshape(x.shape[0], x.shape[1], 3, 2))
        turns = self.get_buffer("turns")[: x.shape[1]]
        result: Tensor = self.leave(self.change(pairs, turns).flatten(2))
        return result


def real(z: Tensor) -> Tensor:
    return torch.view_as_real(z)


CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product": lambda z, turns: real(z * turns),
    "product of one in front": lambda z, turns: real(turns[None].expand(z.shape) * z),
    "twice": lambda z, turns: real(z * turns * turns),
    "sum": lambda z, turns: real(z + z * turns),
    "difference of parts": lambda z, turns: (z * turns).real.unsqueeze(-1) - z.imag.unsqueeze(-1),
    "scaled": lambda z, turns: real(2.0 * (z * turns) * z.real),
    "polar": lambda z, turns: real(z * torch.polar(z.real, z.imag)),
    "views": lambda z, turns: real((z.transpose(1, 2) * turns.t()).permute(0, 2, 1)[:, :, 1:]),
    "joined": lambda z, turns: real(torch.cat([z, -z * turns], dim=-1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_pairs_of_reals_compute_what_complex_numbers_do(change: str) -> None:
    model = Rotate(CHANGES[change]).eval()
    x = torch.randn(2, 4, 4)
    with torch.no_grad():
        model(x)  # gives the lazy layer its shape
        graph = capture(model, (x,), {})
        values = [node.meta.get("val") for node in graph.module.graph.nodes]
        assert not any(isinstance(v, torch.Tensor) and v.is_complex() for v in values)
        assert not any(buffer.is_complex() for buffer in graph.module.buffers())
        more = torch.randn(3, 4, 4)
        torch.testing.assert_close(graph.module(more), model(more))


def test_what_has_no_pair_of_reals_stays_complex() -> None:
    model = Rotate(lambda z, turns: real(torch.exp(z * turns))).eval()
    x = torch.randn(2, 4, 4)
    with torch.no_grad():
        model(x)
        graph = capture(model, (x,), {})
        torch.testing.assert_close(graph.module(x), model(x))
