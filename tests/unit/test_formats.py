"""``storage_bits`` against bytes packed by numpy, and the vocabulary of formats and schemes."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

from advisor.errors import UsageError
from advisor.formats import (
    DTYPE_BITS,
    SCHEMES,
    Granularity,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    TensorFormat,
    scale_count,
    scheme_named,
    storage_bits,
)

SHAPES = [(1,), (8, 64), (5, 7), (3, 1, 1), (6, 3, 3, 3), (2, 33), (1, 1), (7, 5, 3)]
GRANULARITIES: list[Granularity] = [PerTensor(), PerChannel(), PerBlock(32), PerBlock(5)]
QUANTIZED = [name for name, bits in DTYPE_BITS.items() if bits <= 8 and not name.startswith("lut")]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of ``count`` codes written one bit after the other."""
    rng = np.random.default_rng(count)
    codes = rng.integers(0, 2**bits, size=count, dtype=np.uint8)
    stream = np.unpackbits(codes[:, None], axis=1)[:, 8 - bits :].reshape(-1)
    return np.packbits(stream).nbytes


def scales_of(shape: tuple[int, ...], granularity: Granularity) -> int:
    """Number of scales, by cutting a real array."""
    weight = np.zeros(shape)
    match granularity:
        case PerTensor():
            return 1
        case PerChannel(axis=axis):
            return len(np.split(weight, shape[axis], axis=axis))
        case PerGroup(size=size):
            return len(range(0, shape[0], size))
        case PerBlock(size=size):
            rows = weight.reshape(shape[0], -1)
            return sum(len(range(0, len(row), size)) for row in rows)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize("symmetric", [True, False])
def test_storage_is_what_packing_gives(
    shape: tuple[int, ...], granularity: Granularity, dtype: str, symmetric: bool
) -> None:
    fmt = TensorFormat(dtype=dtype, granularity=granularity, symmetric=symmetric)
    scales = scales_of(shape, granularity)
    assert scale_count(shape, granularity) == scales
    for scale_dtype in ("float32", "float16"):
        expected = packed_bytes(prod(shape), DTYPE_BITS[dtype])
        expected += np.zeros(scales, dtype=scale_dtype).nbytes
        expected += 0 if symmetric else packed_bytes(scales, DTYPE_BITS[dtype])
        assert storage_bits(shape, fmt, scale_dtype=scale_dtype) == 8 * expected


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "numpy_dtype"), [("float32", "f4"), ("float16", "f2")])
def test_floats_cost_their_width_and_nothing_else(
    shape: tuple[int, ...], dtype: str, numpy_dtype: str
) -> None:
    bits = storage_bits(shape, TensorFormat(dtype=dtype))
    assert bits == 8 * np.zeros(shape, dtype=numpy_dtype).nbytes


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_a_lookup_table_is_counted(bits: int) -> None:
    fmt = TensorFormat(dtype=f"lut{bits}")
    expected = packed_bytes(5 * 7, bits) + np.zeros(2**bits, dtype="f2").nbytes
    assert storage_bits((5, 7), fmt, scale_dtype="float16") == 8 * expected


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_channels_of_any_axis(axis: int) -> None:
    fmt = TensorFormat(dtype="int8", granularity=PerChannel(axis))
    assert storage_bits((2, 3, 5), fmt) == 8 * (30 + 4 * (2, 3, 5)[axis])


def test_the_last_block_of_every_row_has_a_scale_of_its_own() -> None:
    assert scale_count((4, 33), PerBlock(32)) == 8
    assert scale_count((4, 3, 3, 3), PerBlock(32)) == 4


def test_schemes_are_named_by_what_they_store() -> None:
    for name, scheme in SCHEMES.items():
        assert scheme_named(name) is scheme
        assert scheme.name == name
        if "-g" in name and name.startswith("w"):
            assert scheme.weight.granularity == PerBlock(int(name.rpartition("-g")[2]))
            assert scheme.weight.bits == int(name[1])
        assert scheme.is_float == (name in ("fp32", "fp16", "bf16", "a16a16"))
        assert scheme.is_static == (name in ("w8a8", "a8a8", "a8a8-fp8", "fp8"))


def test_unknown_words_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"int3.*int4"):
        TensorFormat(dtype="int3")
    with pytest.raises(UsageError, match=r"w3.*w4-g32"):
        scheme_named("w3")


@pytest.mark.parametrize(
    ("scheme", "table_bytes"),
    [
        ("lut4", 16 * 2),
        ("lut3", 8 * 2),
        ("lut4-c16", 3 * 16 * 2),  # 48 outputs have three tables
        ("lut4-i8", 16 + 2),  # entries of one byte, and a scale
        ("lut6-i8", 64 + 2),
    ],
)
def test_tables_cost_their_entries(scheme: str, table_bytes: int) -> None:
    fmt = scheme_named(scheme).weight
    bits = int(scheme[3])
    found = storage_bits((48, 10), fmt, scale_dtype="float16")
    assert found == 8 * (packed_bytes(480, bits) + table_bytes)
