"""Operators that no converter has a form of, as others: recurrent ones step by step, for files of
fixed shapes, and bilinear ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F

from advisor.passes.recurrent import GRU, LSTM

Tensor = torch.Tensor


def unroll_lstm(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    reverse: bool,
    with_cell: bool,
) -> Tensor:
    """``advisor::lstm`` in Linears and elementwise operators."""
    zeros = x.new_zeros(x.shape[1], w_hh.shape[1])
    hidden = zeros if h0 is None else h0[0]
    cell = zeros if c0 is None else c0[0]
    steps: list[Tensor] = []
    for given in _in_order(F.linear(x, w_ih, b_ih), reverse):
        admit, forget, new, emit = (given + F.linear(hidden, w_hh, b_hh)).chunk(4, dim=-1)
        cell = forget.sigmoid() * cell + admit.sigmoid() * new.tanh()
        hidden = emit.sigmoid() * cell.tanh()
        steps.append(hidden)
    y = torch.stack(_in_order(steps, reverse))
    return torch.cat([y, cell[None]]) if with_cell else y


def unroll_gru(
    x: Tensor,
    h0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    reverse: bool,
) -> Tensor:
    """``advisor::gru`` in Linears and elementwise operators."""
    hidden = x.new_zeros(x.shape[1], w_hh.shape[1]) if h0 is None else h0[0]
    steps: list[Tensor] = []
    for given in _in_order(F.linear(x, w_ih, b_ih), reverse):
        parts = zip(
            given.chunk(3, dim=-1), F.linear(hidden, w_hh, b_hh).chunk(3, dim=-1), strict=True
        )
        (reset, kept_reset), (update, kept_update), (new, kept_new) = parts
        share = (update + kept_update).sigmoid()
        new = (new + (reset + kept_reset).sigmoid() * kept_new).tanh()
        hidden = new + share * (hidden - new)
        steps.append(hidden)
    return torch.stack(_in_order(steps, reverse))


def _in_order(steps: Any, reverse: bool) -> list[Tensor]:
    found = list(steps)
    return found[::-1] if reverse else found


def spell_bilinear(left: Tensor, right: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One product with every slice of the weight, which stays as it is."""
    rows = left.reshape(-1, left.shape[-1]) @ weight
    made = (rows * right.reshape(-1, right.shape[-1])).sum(-1).transpose(0, 1)
    made = made.reshape(*left.shape[:-1], weight.shape[0])
    return made if bias is None else made + bias


UNROLLED: Final[dict[Any, Callable[..., Tensor]]] = {
    LSTM: unroll_lstm,
    GRU: unroll_gru,
    torch.ops.aten.bilinear.default: spell_bilinear,
}
"""By operator, the same in others."""
