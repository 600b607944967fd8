"""Weight rounding against the textbook formulas in numpy and a dense search."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from advisor.errors import UsageError
from advisor.formats import Granularity, PerBlock, PerChannel, PerGroup, PerTensor, TensorFormat
from advisor.passes.apply import dequantize
from advisor.passes.capture import capture
from advisor.passes.graph import WeightTable
from advisor.passes.rounding import ALGORITHMS, IMPLEMENTED_DTYPES, round_weight
from advisor.passes.rounding.store import RoundedWeights

Array = npt.NDArray[np.float64]
RANGES = {"int8": (-127, 127), "int4": (-8, 7), "int2": (-2, 1)}
GRANULARITIES: list[Granularity] = [PerTensor(), PerChannel(), PerBlock(16), PerBlock(32)]


def table_of(weight: torch.Tensor, fmt: TensorFormat, algorithm: str = "rtn") -> WeightTable:
    table = round_weight(weight, fmt, algorithm)
    assert table.scale is not None
    assert table.scale.dtype == torch.float32
    assert table.values.dtype == torch.int8
    return table


def rows_of(weight: torch.Tensor, granularity: Granularity) -> list[npt.NDArray[np.float32]]:
    """The values that share a scale, one array per scale."""
    array = weight.numpy()
    match granularity:
        case PerTensor():
            return [array.reshape(-1)]
        case PerChannel(axis=axis):
            return [part.reshape(-1) for part in np.moveaxis(array, axis, 0)]
        case PerGroup():
            raise AssertionError("groups share tables, not scales")
        case PerBlock(size=size):
            flat = array.reshape(len(array), -1)
            return [row[i : i + size] for row in flat for i in range(0, len(row), size)]


def textbook(row: npt.NDArray[np.float32], dtype: str) -> tuple[np.float32, npt.NDArray[np.int8]]:
    low, high = RANGES[dtype]
    scale = np.float32(np.abs(row).max() / np.float32(high)) or np.float32(1)
    return scale, np.clip(np.rint(row / scale), low, high).astype(np.int8)


def row_errors(weight: torch.Tensor, fmt: TensorFormat, algorithm: str) -> Array:
    table = table_of(weight, fmt, algorithm)
    restored = dequantize(table, fmt, tuple(weight.shape))
    pairs = zip(rows_of(restored, fmt.granularity), rows_of(weight, fmt.granularity), strict=True)
    return np.array([np.square(a.astype(np.float64) - b).sum() for a, b in pairs])


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("shape", [(6, 64), (4, 8, 2, 2), (5, 32, 3), (8, 1, 4, 4), (3, 50)])
def test_rtn_is_the_textbook_formula(
    granularity: Granularity, dtype: str, shape: tuple[int, ...]
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    fmt = TensorFormat(dtype=dtype, granularity=granularity)
    table = table_of(weight, fmt)
    assert table.scale is not None
    expected = [textbook(row, dtype) for row in rows_of(weight, granularity)]
    scales = np.array([scale for scale, _ in expected])
    assert np.array_equal(table.scale.numpy().reshape(-1), scales)
    found = rows_of(table.values, granularity)
    for (_, integers), row in zip(expected, found, strict=True):
        assert np.array_equal(integers, row)
    restored = dequantize(table, fmt, shape)
    for (scale, integers), row in zip(expected, rows_of(restored, granularity), strict=True):
        assert np.array_equal(integers.astype(np.float32) * scale, row)


def test_channels_of_another_axis() -> None:
    weight = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(2))
    fmt = TensorFormat(dtype="int8", granularity=PerChannel(axis=1))
    table = table_of(weight, fmt)
    assert table.scale is not None
    assert table.scale.shape == (4,)
    assert torch.allclose(table.scale, weight.abs().amax(dim=(0, 2)) / 127)
    assert float((dequantize(table, fmt, (3, 4, 5)) - weight).abs().max()) <= float(
        table.scale.max() / 2 + 1e-6
    )


def test_blocks_of_a_convolution_run_along_its_flattened_inputs() -> None:
    weight = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(3))
    fmt = TensorFormat(dtype="int4", granularity=PerBlock(24))
    table = table_of(weight, fmt)
    assert table.values.shape == (4, 72)
    assert table.scale is not None
    assert table.scale.shape == (4, 3)
    assert torch.equal(table.scale, weight.reshape(4, 3, 24).abs().amax(2) / 7)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_ragged_last_block_stays_in_its_row(algorithm: str) -> None:
    weight = torch.ones(4, 40)
    weight[2] *= 100
    fmt = TensorFormat(dtype="int4", granularity=PerBlock(32))
    table = table_of(weight, fmt, algorithm)
    assert table.scale is not None
    assert table.scale.shape == (4, 2)
    assert torch.allclose(dequantize(table, fmt, (4, 40)), weight, rtol=1e-6)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("tails", [2.5, 5.0, 30.0])
def test_mse_is_never_worse_than_rtn(granularity: Granularity, dtype: str, tails: float) -> None:
    rng = np.random.default_rng(7)
    weight = torch.from_numpy(rng.standard_t(tails, size=(16, 64)).astype(np.float32))
    fmt = TensorFormat(dtype=dtype, granularity=granularity)
    rtn, mse = row_errors(weight, fmt, "rtn"), row_errors(weight, fmt, "mse")
    assert (mse <= rtn * (1 + 1e-5)).all()
    if granularity == PerChannel() and dtype != "int8":  # clipping pays at few bits
        assert mse.sum() < rtn.sum()


@pytest.mark.parametrize(("dtype", "slack"), [("int8", 1.15), ("int4", 1.03), ("int2", 1.06)])
def test_mse_is_close_to_a_dense_search(dtype: str, slack: float) -> None:
    """At 8 bits a dense search mostly finds lucky scales of one row, not a better clipping."""
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(5))
    fmt = TensorFormat(dtype=dtype, granularity=PerChannel())
    low, high = RANGES[dtype]
    best = 0.0
    for row in weight.numpy().astype(np.float64):
        scales = np.abs(row).max() / high * np.linspace(0.05, 1.2, 1500)[:, None]
        restored = np.clip(np.rint(row / scales), low, high) * scales
        best += np.square(restored - row).sum(axis=1).min()
    assert row_errors(weight, fmt, "mse").sum() <= slack * best


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", RANGES)
def test_every_code_stays_in_range_and_ends_are_used(algorithm: str, dtype: str) -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(6))
    table = table_of(weight, TensorFormat(dtype=dtype, granularity=PerChannel()), algorithm)
    low, high = RANGES[dtype]
    assert int(table.values.min()) >= low
    assert int(table.values.max()) == high


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", RANGES)
def test_rows_of_zeros_stay_zero(algorithm: str, dtype: str) -> None:
    weight = torch.zeros(3, 32)
    weight[1] = torch.linspace(-1, 1, 32)
    fmt = TensorFormat(dtype=dtype, granularity=PerChannel())
    restored = dequantize(table_of(weight, fmt, algorithm), fmt, (3, 32))
    assert not restored[[0, 2]].any()
    assert restored[1].any()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("value", [0.25, -0.25, 1e-30, 3e30])
def test_a_single_element_is_exact(algorithm: str, dtype: str, value: float) -> None:
    weight = torch.tensor([[value]])
    fmt = TensorFormat(dtype=dtype, granularity=PerChannel())
    restored = dequantize(table_of(weight, fmt, algorithm), fmt, (1, 1))
    assert torch.allclose(restored, weight, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("magnitude", [1e-30, 1e-20, 1e20, 1e30])
def test_the_scale_of_the_numbers_does_not_matter(magnitude: float) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(8))
    fmt = TensorFormat(dtype="int4", granularity=PerChannel())
    usual = table_of(weight, fmt, "mse")
    moved = table_of(weight * magnitude, fmt, "mse")
    assert usual.scale is not None
    assert moved.scale is not None
    assert torch.allclose(moved.scale / magnitude, usual.scale, rtol=1e-5)
    assert float((moved.values - usual.values).abs().float().mean()) < 1e-3


@pytest.mark.parametrize("granularity", [PerChannel(0), PerBlock(32)])
def test_rows_of_a_large_weight_are_rounded_like_each_alone(granularity: Granularity) -> None:
    weight = torch.randn(1001, 300, generator=torch.Generator().manual_seed(0))
    fmt = TensorFormat(dtype="int4", granularity=granularity)
    whole = round_weight(weight, fmt, "mse")
    assert whole.scale is not None
    for start in range(0, 1001, 100):
        part = round_weight(weight[start : start + 100], fmt, "mse")
        assert torch.equal(whole.values[start : start + 100], part.values)
        assert part.scale is not None
        assert torch.equal(whole.scale[start : start + 100], part.scale)


def test_float_formats_are_casts() -> None:
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(9))
    for dtype, expected in (("float16", weight.half()), ("bfloat16", weight.bfloat16())):
        table = round_weight(weight, TensorFormat(dtype=dtype), "none")
        assert table.scale is None
        assert torch.equal(table.values, expected)
        fmt = TensorFormat(dtype=dtype)
        assert torch.equal(dequantize(table, fmt, (4, 4)), expected.float())


def test_what_cannot_be_made_is_said() -> None:
    with pytest.raises(UsageError, match=r"nf4 cannot be made yet; possible: .*int4"):
        round_weight(torch.ones(2, 2), TensorFormat(dtype="nf4"), "rtn")
    with pytest.raises(UsageError, match="unknown algorithm 'gptq'; possible: rtn, mse"):
        round_weight(torch.ones(2, 2), TensorFormat(dtype="int4"), "gptq")
    assert "nf4" not in IMPLEMENTED_DTYPES


def test_rounded_weights_are_kept_up_to_the_limit() -> None:
    model = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 8))
    graph = capture(model.eval(), (torch.randn(2, 32),), {})
    fmt = TensorFormat(dtype="int8", granularity=PerChannel())
    first, second = (layer.weight for layer in graph.layers)
    store = RoundedWeights(graph, limit_bytes=32 * 16)
    assert store.get(first, fmt, "rtn") is store.get(first, fmt, "rtn")
    assert store.get(first, fmt, "mse") is not store.get(first, fmt, "mse")  # no room left
    again = store.get(second, fmt, "rtn")
    assert again is not store.get(second, fmt, "rtn")
    assert torch.equal(again.values, store.get(second, fmt, "rtn").values)
    other = store.get(first, TensorFormat(dtype="int4", granularity=PerChannel()), "rtn")
    assert int(other.values.abs().max()) <= 8
