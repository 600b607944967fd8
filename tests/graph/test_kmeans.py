"""Lookup tables against scikit-learn, brute force, and what an optimum must satisfy."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from advisor.errors import UsageError
from advisor.formats import PerGroup, ScaleRounding, TensorFormat, scheme_named
from advisor.passes.apply import dequantize
from advisor.passes.rounding import round_weight
from advisor.passes.rounding.kmeans import best_stops, find_centres, nearest


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error_of(values: torch.Tensor, centres: torch.Tensor, shares: torch.Tensor) -> float:
    distance = (values[:, None].double() - centres.double()).square().min(dim=1).values
    return float((distance * shares).sum())


def least_error(values: torch.Tensor, shares: torch.Tensor, count: int) -> float:
    """Over all ways to cut the sorted values into intervals."""
    order = values.double().argsort()
    points, masses = values.double()[order].numpy(), shares.double()[order].numpy()
    best = float("inf")
    for cuts in combinations(range(1, len(points)), count - 1):
        total = 0.0
        for part in np.split(np.arange(len(points)), cuts):
            centre = np.average(points[part], weights=masses[part])
            total += float((masses[part] * (points[part] - centre) ** 2).sum())
        best = min(best, total)
    return best


def test_small_cases_are_near_the_optimum() -> None:
    ratios: list[float] = []
    for seed in range(6):
        values = draw(14, seed=seed)
        shares = draw(14, seed=seed + 50).square() + 0.01
        for given in (torch.ones(14), shares):
            found = find_centres(values, given, 4)
            ratios.append(error_of(values, found, given) / least_error(values, given, 4))
    assert min(ratios) > 1 - 1e-5  # nothing beats brute force
    assert max(ratios) < 1 + 1e-5  # every value has a cell of its own


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_no_worse_than_scikit_learn(bits: int) -> None:
    from sklearn.cluster import KMeans

    values = draw(4000, seed=bits)
    values[:20] *= 6  # outliers, which trained weights have
    shares = draw(4000, seed=bits + 9).square()
    for given in (torch.ones(4000), shares):
        untyped: Any = KMeans  # scikit-learn's own annotations are wrong about n_init
        reference = untyped(1 << bits, n_init=3, random_state=0).fit(
            values[:, None].numpy(), sample_weight=given.numpy()
        )
        ours = error_of(values, find_centres(values, given, 1 << bits), given)
        assert ours <= 1.01 * reference.inertia_


def test_centres_are_means_and_values_go_to_the_nearest() -> None:
    values, shares = draw(3000), draw(3000, seed=1).square()
    centres = find_centres(values, shares, 16)
    index = nearest(values, centres).long()
    assert torch.equal(index, (values[:, None] - centres).abs().argmin(dim=1))
    for cluster in range(16):
        held = index == cluster
        mean = (values[held].double() * shares[held]).sum() / shares[held].sum()
        assert abs(float(centres[cluster]) - float(mean)) < 2e-3


def test_weights_move_centres_to_what_counts() -> None:
    weight, importance = draw(64, 32), torch.ones(32)
    importance[:4] = 100.0
    fmt = scheme_named("lut2").weight
    plain = dequantize(round_weight(weight, fmt, "kmeans"), fmt, (64, 32)) - weight
    weighed = round_weight(weight, fmt, "kmeans-weighted", importance=importance)
    change = dequantize(weighed, fmt, (64, 32)) - weight
    assert (change.square() * importance).sum() < (plain.square() * importance).sum()
    assert change.square().sum() > plain.square().sum()


def test_grouped_convolutions_weigh_their_own_channels() -> None:
    weight = draw(8, 2, 3, 3)
    importance = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    fmt = scheme_named("lut1").weight
    table = round_weight(weight, fmt, "kmeans-weighted", importance=importance)
    only = find_centres(weight[:2].reshape(-1), torch.ones(36), 2)
    torch.testing.assert_close(table.table, only[None], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_groups_have_tables_of_their_own(dtype: str) -> None:
    weight = draw(32, 10) * torch.linspace(0.1, 2, 32)[:, None]
    fmt = TensorFormat(dtype="lut3", granularity=PerGroup(16))
    scales = ScaleRounding(channel=dtype, block=dtype)
    table = round_weight(weight, fmt, "kmeans", scales)
    assert table.table is not None
    assert table.table.shape == (2, 8)
    assert table.values.dtype == torch.uint8
    if dtype == "float16":
        assert torch.equal(table.table, table.table.half().float())
    found = dequantize(table, fmt, (32, 10))
    for group in range(2):
        rows = slice(16 * group, 16 * group + 16)
        alone = round_weight(weight[rows], TensorFormat(dtype="lut3"), "kmeans", scales)
        assert torch.equal(found[rows], dequantize(alone, fmt, (16, 10)))


def test_a_table_of_integers_is_on_its_grid() -> None:
    weight, fmt = draw(16, 16), scheme_named("lut4-i8").weight
    table = round_weight(weight, fmt, "kmeans", ScaleRounding(channel="float16"))
    assert table.table is not None
    assert table.scale is not None
    assert table.table.dtype == torch.int8
    assert int(table.table.abs().max()) == 127
    restored = table.table.float() * table.scale[:, None]
    assert torch.equal(dequantize(table, fmt, (16, 16)), restored[0][table.values.long()])


@pytest.mark.parametrize("scheme", ["lut1", "lut8", "lut4-c16", "lut4-i8"])
def test_constant_and_zero_weights(scheme: str) -> None:
    fmt = scheme_named(scheme).weight
    scales = ScaleRounding(channel="float16")
    for value in (0.0, 0.5, -3.0):
        weight = torch.full((16, 4), value)
        table = round_weight(weight, fmt, "kmeans", scales)
        torch.testing.assert_close(dequantize(table, fmt, (16, 4)), weight, rtol=1e-3, atol=0)


def test_one_outlier_is_not_lost() -> None:
    weight, fmt = draw(16, 64) * 0.01, scheme_named("lut4").weight
    weight[3, 7] = 5.0
    restored = dequantize(round_weight(weight, fmt, "kmeans"), fmt, (16, 64))
    assert float(restored[3, 7]) == pytest.approx(5.0)
    assert float((restored - weight).abs().max()) < 0.01


def test_what_cannot_be_is_said() -> None:
    fmt = scheme_named("lut4").weight
    with pytest.raises(UsageError, match="calibrate, or use kmeans"):
        round_weight(draw(4, 4), fmt, "kmeans-weighted")
    with pytest.raises(UsageError, match="possible: kmeans, kmeans-weighted"):
        round_weight(draw(4, 4), fmt, "rtn")


def test_clusters_of_many_cells_are_the_best_ones() -> None:
    """More cells than are tried at once, against every beginning of every cluster."""
    points = draw(200, seed=3).double().sort().values.numpy()
    sums, squares = (np.concatenate([[0.0], np.cumsum(v)]) for v in (points, points**2))
    held = np.maximum(np.arange(201) - np.arange(201)[:, None], 1)
    error = (squares - squares[:, None]) - (sums - sums[:, None]) ** 2 / held
    error = np.where(np.tri(201, k=-1, dtype=bool), np.inf, np.maximum(error, 0.0))
    least = error[0]
    for _ in range(11):
        least = (least[:, None] + error).min(axis=0)
    stops = best_stops(error, 12)
    starts = [0, *stops[:-1]]
    assert float(error[starts, stops].sum()) == pytest.approx(float(least[-1]), rel=1e-12)
