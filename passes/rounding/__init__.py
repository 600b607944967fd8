"""Rounding algorithms: how the weights of a layer become the integers of a scheme.

An algorithm is a function ``(weight, format) -> WeightTable``; ``ALGORITHMS`` lists them. To add
one, write it in a file of its own and list it here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from advisor.errors import UsageError
from advisor.formats import FLOAT_DTYPES, PerBlock, TensorFormat
from advisor.passes.graph import WeightTable
from advisor.passes.ops import FLOAT8
from advisor.passes.rounding.float8 import round_to_float8
from advisor.passes.rounding.grid import round_to_coarse_scales
from advisor.passes.rounding.mse import round_by_mse
from advisor.passes.rounding.rtn import round_to_nearest

ALGORITHMS: Final[dict[str, Callable[[torch.Tensor, TensorFormat], WeightTable]]] = {
    "rtn": round_to_nearest,
    "mse": round_by_mse,
}

IMPLEMENTED_DTYPES: Final = frozenset(
    {"float32", "float16", "bfloat16", "float8_e4m3", "int8", "int4", "int2"}
)
"""Weight dtypes that ``round_weight`` can make today."""


def algorithms_for(dtype: str) -> tuple[str, ...]:
    """The algorithms that make a difference for weights of ``dtype``; none for plain floats.

    An eight-bit float is as exact relative to small numbers as to large ones, so that clipping
    large ones gains nothing.
    """
    if dtype in FLOAT_DTYPES:
        return ()
    return ("rtn",) if dtype in FLOAT8 else tuple(ALGORITHMS)


def round_weight(
    weight: torch.Tensor, fmt: TensorFormat, algorithm: str, block_scale: str = "float32"
) -> WeightTable:
    """The weight in ``fmt``: integers and scales, or the cast floats.

    weight: torch layout (out, ...), float32. block_scale: dtype that the runtime rounds the scales
    of blocks to (``Capability.block_scale_rounding``).

    Raises:
        UsageError: unknown algorithm, or a format without an implementation.
    """
    if fmt.dtype not in IMPLEMENTED_DTYPES:
        raise UsageError(
            f"weights as {fmt.dtype} cannot be made yet; possible: "
            f"{', '.join(sorted(IMPLEMENTED_DTYPES))}"
        )
    if fmt.is_float:
        return WeightTable(values=weight.to(getattr(torch, fmt.dtype)))
    if algorithm not in ALGORITHMS:
        raise UsageError(f"unknown algorithm {algorithm!r}; possible: {', '.join(ALGORITHMS)}")
    if fmt.dtype in FLOAT8:
        return round_to_float8(weight, fmt)
    table = ALGORITHMS[algorithm](weight, fmt)
    if isinstance(fmt.granularity, PerBlock) and block_scale != "float32":
        return round_to_coarse_scales(weight, table, fmt, getattr(torch, block_scale))
    return table
