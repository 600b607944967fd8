"""Recurrent operators with one layer and one direction, spelled so that a plan sees their weights.

``advisor::lstm`` and ``advisor::gru`` compute what ``torch.nn.LSTM`` and ``torch.nn.GRU`` define,
on (time, batch, channels). They give back one tensor, every step's hidden state: the final one is
its last step (the first one in reverse). They have gradients, because sensitivities need them.

``advisor::lstm_dynamic`` is for inference only: the hidden state is quantized at every step, with
one scale for the whole batch, as com.microsoft DynamicQuantizeLSTM does on one thread. With more,
that kernel quantizes each thread's share of the batch on its own. What it does to the input is an
operator of its own, ``advisor::quantize_dequantize_dynamic`` (arithmetic: measured, onnxruntime
1.31.1, and onnxruntime/core/providers/cpu/rnn/uni_directional_lstm.cc in its repository).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import torch
import torch.nn.functional as F

from advisor.passes.ops import QUANTIZE_DEQUANTIZE_DYNAMIC, Operator, define

_SHARED: Final = "Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, bool reverse"
_LSTM: Final = f"(Tensor x, Tensor? h0, Tensor? c0, {_SHARED}, bool with_cell) -> Tensor"
_GRU: Final = f"(Tensor x, Tensor? h0, {_SHARED}) -> Tensor"


def _parameters(*tensors: torch.Tensor | None) -> list[torch.Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _zeros(x: torch.Tensor, w_hh: torch.Tensor) -> torch.Tensor:
    return x.new_zeros(1, x.shape[1], w_hh.shape[1])


def _lstm(
    x: torch.Tensor,
    h0: torch.Tensor | None,
    c0: torch.Tensor | None,
    w_ih: torch.Tensor,
    w_hh: torch.Tensor,
    b_ih: torch.Tensor | None,
    b_hh: torch.Tensor | None,
    reverse: bool,
    with_cell: bool,
) -> torch.Tensor:
    zeros = _zeros(x, w_hh)
    states = [zeros if h0 is None else h0, zeros if c0 is None else c0]
    weights = _parameters(w_ih, w_hh, b_ih, b_hh)
    y, _, cell = torch.lstm(
        x.flip(0) if reverse else x, states, weights, b_ih is not None, 1, 0.0, False, False, False
    )
    y = y.flip(0) if reverse else y
    return torch.cat([y, cell]) if with_cell else y.contiguous()


def _lstm_fake(
    x: torch.Tensor,
    h0: torch.Tensor | None,
    c0: torch.Tensor | None,
    w_ih: torch.Tensor,
    w_hh: torch.Tensor,
    b_ih: torch.Tensor | None,
    b_hh: torch.Tensor | None,
    reverse: bool,
    with_cell: bool,
) -> torch.Tensor:
    return x.new_empty((x.shape[0] + int(with_cell), x.shape[1], w_hh.shape[1]))


def _lstm_dynamic(
    x: torch.Tensor,
    h0: torch.Tensor | None,
    c0: torch.Tensor | None,
    w_ih: torch.Tensor,
    w_hh: torch.Tensor,
    b_ih: torch.Tensor | None,
    b_hh: torch.Tensor | None,
    reverse: bool,
    with_cell: bool,
) -> torch.Tensor:
    hidden = _zeros(x, w_hh)[0] if h0 is None else h0[0]
    cell = _zeros(x, w_hh)[0] if c0 is None else c0[0]
    bias = None if b_ih is None or b_hh is None else b_ih + b_hh
    from_input = F.linear(x.flip(0) if reverse else x, w_ih)
    steps: list[torch.Tensor] = []
    for step in from_input:
        rounded = QUANTIZE_DEQUANTIZE_DYNAMIC(hidden, "uint8", False, "per-tensor", 0)
        gates = step + F.linear(rounded, w_hh)
        gates = gates if bias is None else gates + bias
        admit, forget, new, emit = gates.chunk(4, dim=-1)
        cell = forget.sigmoid() * cell + admit.sigmoid() * new.tanh()
        hidden = emit.sigmoid() * cell.tanh()
        steps.append(hidden)
    y = torch.stack(steps[::-1] if reverse else steps)
    return torch.cat([y, cell[None]]) if with_cell else y


def run_in_batches(arguments: Sequence[Any], samples: int, batch: int) -> torch.Tensor:
    """``LSTM_DYNAMIC`` on many samples at once, as if they came in batches of ``batch``."""
    rows = arguments[0].shape[1]
    share = rows if rows % samples else rows // samples * batch
    parts = [
        LSTM_DYNAMIC(*(_part(value, index, start, share) for index, value in enumerate(arguments)))
        for start in range(0, rows, share)
    ]
    return torch.cat(parts, dim=1)


def _part(value: Any, index: int, start: int, size: int) -> Any:
    """One argument for the samples from ``start``: the first three hold samples."""
    return value[:, start : start + size] if index < 3 and value is not None else value


def _gru(
    x: torch.Tensor,
    h0: torch.Tensor | None,
    w_ih: torch.Tensor,
    w_hh: torch.Tensor,
    b_ih: torch.Tensor | None,
    b_hh: torch.Tensor | None,
    reverse: bool,
) -> torch.Tensor:
    y, _ = torch.gru(
        x.flip(0) if reverse else x,
        _zeros(x, w_hh) if h0 is None else h0,
        _parameters(w_ih, w_hh, b_ih, b_hh),
        b_ih is not None,
        1,
        0.0,
        False,
        False,
        False,
    )
    return (y.flip(0) if reverse else y).contiguous()


def _gru_fake(
    x: torch.Tensor,
    h0: torch.Tensor | None,
    w_ih: torch.Tensor,
    w_hh: torch.Tensor,
    b_ih: torch.Tensor | None,
    b_hh: torch.Tensor | None,
    reverse: bool,
) -> torch.Tensor:
    return x.new_empty((x.shape[0], x.shape[1], w_hh.shape[1]))


def _differentiate(name: str, kernel: Callable[..., torch.Tensor]) -> None:
    """Give an operator the gradient of its kernel, computed anew from the inputs."""

    def keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.is_tensor = [isinstance(value, torch.Tensor) for value in inputs]
        ctx.others = [None if isinstance(value, torch.Tensor) else value for value in inputs]
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, torch.Tensor)))

    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tensors = iter(cast("tuple[torch.Tensor, ...]", ctx.saved_tensors))
        wanted = cast("tuple[bool, ...]", ctx.needs_input_grad)
        inputs = [
            next(tensors).detach().requires_grad_(is_wanted) if is_tensor else other
            for is_tensor, other, is_wanted in zip(ctx.is_tensor, ctx.others, wanted, strict=True)
        ]
        with torch.enable_grad():
            output = kernel(*inputs)
        live = [value for value, is_wanted in zip(inputs, wanted, strict=True) if is_wanted]
        found = iter(torch.autograd.grad(output, live, gradient))
        return tuple(next(found) if is_wanted else None for is_wanted in wanted)

    library: Any = torch.library  # register_autograd's own parameters have no types
    library.register_autograd(name, backward, setup_context=keep)


def register() -> None:
    """Make the operators known to torch; does nothing the second time."""
    if hasattr(torch.ops.advisor, "lstm"):
        return
    for name, schema, kernel, fake in (
        ("advisor::lstm", _LSTM, _lstm, _lstm_fake),
        ("advisor::gru", _GRU, _gru, _gru_fake),
    ):
        define(name, schema, kernel, fake)
        _differentiate(name, kernel)
    define("advisor::lstm_dynamic", _LSTM, _lstm_dynamic, _lstm_fake)


register()

LSTM: Final[Operator] = torch.ops.advisor.lstm.default
"""(x (T, B, I), h0, c0 (1, B, H) or None for zeros, w_ih (4H, I), w_hh (4H, H), b_ih, b_hh (4H),
reverse, with_cell) -> (T, B, H), gates in the order input, forget, cell, output.

with_cell: the final cell state follows as one more step: (T + 1, B, H).
"""

LSTM_DYNAMIC: Final[Operator] = torch.ops.advisor.lstm_dynamic.default
"""``LSTM`` with a hidden state that is uint8 wherever it is multiplied."""

GRU: Final[Operator] = torch.ops.advisor.gru.default
"""(x (T, B, I), h0 (1, B, H) or None, w_ih (3H, I), w_hh (3H, H), b_ih, b_hh (3H), reverse)
-> (T, B, H), gates in the order reset, update, new."""

WEIGHTS_AT: Final[dict[Any, tuple[int, int]]] = {
    LSTM: (3, 4),
    LSTM_DYNAMIC: (3, 4),
    GRU: (2, 3),
}
"""By operator, where its input and its recurrent weight are among the arguments."""
