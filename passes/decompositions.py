"""The explicit decomposition list: which composite operators are opened, and how.

``linear``, ``conv``, ``scaled_dot_product_attention``, ``layer_norm``, ``gelu`` and the like stay
whole, because runtimes fuse or quantize them as one. Opened are only operators whose inside a
plan needs to see, or that a runtime gets wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch._export.utils import (
    _is_preservable_cia_op,  # pyright: ignore[reportPrivateUsage]  # see decompose
    _special_op_to_preserve_cia,  # pyright: ignore[reportPrivateUsage, reportUnknownVariableType]
)
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.export import ExportedProgram
from torch.export.exported_program import (
    _decompose_exported_program,  # pyright: ignore[reportPrivateUsage, reportUnknownVariableType]
)

aten = torch.ops.aten


def decompose_rms_norm(
    x: torch.Tensor,
    normalized_shape: list[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor:
    """RMSNorm by its definition (Zhang and Sennrich 2019, arXiv:1910.07467, equation 4).

    Opened because Core ML's own lowering scales eps by the squared maximum: 5 % wrong at an
    activation scale of 0.01, NaN on zero rows.
    """
    dims = [-1 - index for index in range(len(normalized_shape))]
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    normalised = x * torch.rsqrt(x.pow(2).mean(dim=dims, keepdim=True) + eps)
    return normalised if weight is None else normalised * weight


def decompose_batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inference batch norm as one multiplication and one addition with constants.

    Constant folding then turns both constants into buffers, and ``fold_affine`` moves them into
    the convolution or linear before. The last two outputs (saved statistics) are never used in
    inference.
    """
    scale = torch.rsqrt(running_var + eps)
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale
    shift = shift if bias is None else shift + bias
    shape = [1, -1] + [1] * (x.ndim - 2)
    unused = running_mean.new_zeros(0)
    return x * scale.reshape(shape) + shift.reshape(shape), unused, unused


DECOMPOSITIONS: dict[OpOverload, Callable[..., Any]] = {
    aten.rms_norm.default: decompose_rms_norm,
    aten._native_batch_norm_legit_no_training.default: decompose_batch_norm,
}


def decompose(
    program: ExportedProgram, table: Mapping[Any, Callable[..., Any]] = DECOMPOSITIONS
) -> ExportedProgram:
    """The program in torch's functional form, with the operators of ``table`` opened.

    As ``program.run_decompositions(table)``, which first marks each of torch's composite operators
    (some 450) as one to keep whole; that takes 0.3 s, longer than all the rest for a small model.
    Here only those that the program calls are marked.
    """
    targets: list[Any] = [node.target for node in program.graph.nodes]
    called = {target for target in targets if hasattr(target, "_schema")}
    composite = {op for op in {*called, *table} if _is_preservable_cia_op(op)}
    keep = cast("Any", _special_op_to_preserve_cia)
    with unset_fake_temporarily():
        opened: ExportedProgram = _decompose_exported_program(
            program,
            cia_to_decomp={op: table.get(op, keep) for op in composite},
            python_decomp_table={op: table[op] for op in table if op not in composite},
            joint_loss_index=None,
            decompose_custom_triton_ops=False,
        )
    return opened
