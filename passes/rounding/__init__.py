"""Rounding algorithms: how the weights of a layer become the integers of a scheme.

An algorithm is a function ``(weight, format) -> WeightTable``; ``ALGORITHMS`` lists those that make
integers. To add one, write it in a file of its own and list it here. Lookup tables are made by
``kmeans``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from advisor.errors import UsageError
from advisor.formats import EXACT, LUT_BITS, ScaleRounding, TensorFormat
from advisor.passes.graph import WeightTable
from advisor.passes.ops import FLOAT8
from advisor.passes.rounding.float4 import round_to_float4
from advisor.passes.rounding.float8 import round_to_float8
from advisor.passes.rounding.grid import round_to_coarse_scales
from advisor.passes.rounding.kmeans import round_by_kmeans
from advisor.passes.rounding.mse import round_by_mse
from advisor.passes.rounding.rtn import round_to_nearest

ALGORITHMS: Final[dict[str, Callable[[torch.Tensor, TensorFormat], WeightTable]]] = {
    "rtn": round_to_nearest,
    "mse": round_by_mse,
}

TABLE_ALGORITHMS: Final = ("kmeans", "kmeans-weighted")
"""The same for lookup tables; the second weighs errors by what the layer reads."""

NEEDS_DATA: Final = frozenset({"kmeans-weighted"})
"""Algorithms that look at calibration data."""

IMPLEMENTED_DTYPES: Final = frozenset(
    {
        *("float32", "float16", "bfloat16", "float8_e4m3", "fp4", "int8", "int4", "int2"),
        *(f"lut{bits}" for bits in LUT_BITS),
    }
)
"""Weight dtypes that ``round_weight`` can make today."""


def round_weight(
    weight: torch.Tensor,
    fmt: TensorFormat,
    algorithm: str,
    scales: ScaleRounding = EXACT,
    importance: torch.Tensor | None = None,
) -> WeightTable:
    """The weight in ``fmt``: integers and scales, or the cast floats.

    weight: torch layout (out, ...), float32. scales: what the runtime rounds scales to
    (``Capability.scale_rounding``). importance: the mean square of what every input channel reads,
    which the algorithms in ``NEEDS_DATA`` weigh errors with.

    Raises:
        UsageError: unknown algorithm, one that needs data and has none, or a format without an
            implementation.
    """
    if fmt.dtype not in IMPLEMENTED_DTYPES:
        raise UsageError(
            f"weights as {fmt.dtype} cannot be made yet; possible: "
            f"{', '.join(sorted(IMPLEMENTED_DTYPES))}"
        )
    if fmt.is_float:
        return WeightTable(values=weight.to(getattr(torch, fmt.dtype)))
    possible = algorithms_for(fmt)
    if algorithm not in possible:
        raise UsageError(f"unknown algorithm {algorithm!r}; possible: {', '.join(possible)}")
    if fmt.dtype in FLOAT8:
        return round_to_float8(weight, fmt)
    if fmt.dtype == "fp4":
        return round_to_float4(weight, fmt)
    dtype: torch.dtype = getattr(torch, scales.of(fmt.granularity))
    if fmt.is_table:
        if algorithm in NEEDS_DATA and importance is None:
            raise UsageError(
                f"{algorithm} weighs errors with what the layer reads, which is not known; "
                f"calibrate, or use {possible[0]}"
            )
        used = importance if algorithm in NEEDS_DATA else None
        return round_by_kmeans(weight, fmt, used, dtype)
    table = ALGORITHMS[algorithm](weight, fmt)
    if dtype is not torch.float32:
        return round_to_coarse_scales(weight, table, fmt, dtype)
    return table


def algorithms_for(fmt: TensorFormat) -> tuple[str, ...]:
    """Names of the algorithms that make integers (or tables) of a format, the better one last.

    A float is as exact relative to small numbers as to large ones, so that clipping large ones
    gains nothing.
    """
    if fmt.is_table:
        return TABLE_ALGORITHMS
    return ("rtn",) if fmt.dtype in (*FLOAT8, "fp4") else tuple(ALGORITHMS)
