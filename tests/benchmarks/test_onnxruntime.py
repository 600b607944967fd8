"""The comparison with ONNX Runtime's own quantizers, on a model small enough for a test."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn

from advisor.targets import turns
from benchmarks import models
from benchmarks.claims import NO_LOSS
from benchmarks.command import Options
from benchmarks.measure import divergence_of, outputs_of
from benchmarks.onnxruntime import claims, compare, saturation, summarise
from benchmarks.onnxruntime.floatmodel import FEEDS, export_float
from benchmarks.onnxruntime.measure import OnnxVariant
from benchmarks.onnxruntime.predict import errors_of, overall
from benchmarks.peers import load_feeds, make_peer, save_feeds
from benchmarks.timing import MIN_ROUNDS, median_interval, ratios_to, time_variants
from tests.benchmarks.tiny import Tiny, tiny_case

PEERS = "benchmarks.onnxruntime.peers"


def test_median_interval_holds_the_median_at_95_percent() -> None:
    for n in range(6, 32):
        values = [float(i) for i in range(n)]
        low, high = median_interval(values)
        assert low + high == n - 1
        # The interval misses when fewer than low + 1 of n fall below the true median, or above it.
        assert 1 - 2 * binom.cdf(low - 1, n, 0.5) >= 0.94
    assert median_interval([3.0, 4.0, 5.0]) == (3.0, 5.0)


def test_variants_take_turns_in_an_order_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "VISIT_S", 0.0)  # a turn is two runs: one to warm, one that counts
    visits: list[str] = []

    def call(name: str) -> None:
        visits.append(name)

    calls = {name: partial(call, name) for name in "abc"}
    found = time_variants(calls, reference="a", seconds=0.0, threads=1)
    assert {timing.rounds for timing in found.values()} == {MIN_ROUNDS}
    seen = visits[6:]  # each was called twice before
    assert seen[::2] == seen[1::2]
    rounds = [tuple(seen[i : i + 6 : 2]) for i in range(0, len(seen), 6)]
    assert len(rounds) == MIN_ROUNDS
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 1
    assert found["a"].ratio == found["a"].low == found["a"].high == 1.0
    assert found["b"].low <= found["b"].ratio <= found["b"].high


def test_what_slows_whole_rounds_is_no_variants_own() -> None:
    """Two of the three are exact beside the load; the third is up to a tenth off."""
    load = [1.0, 3.0, 1.0, 2.0, 1.5, 1.0, 4.0, 1.0, 1.0]
    wobble = [0.9, 1.0, 1.1, 1.0, 1.05, 0.95, 1.0, 1.0, 1.0]
    seen = {
        "float": [2.0 * slow for slow in load],
        "half": [1.0 * slow for slow in load],
        "noisy": [3.0 * slow * own for slow, own in zip(load, wobble, strict=True)],
    }
    found = ratios_to(seen, "float")
    half, noisy = found["half"], found["noisy"]
    assert (half.ratio, half.low, half.high) == pytest.approx((0.5, 0.5, 0.5))
    assert half.min_s == 1.0
    assert noisy.ratio == pytest.approx(1.5)
    low, high = median_interval(sorted(wobble))
    assert (noisy.low, noisy.high) == pytest.approx((1.5 * low, 1.5 * high))
    assert low < 1 < high


def test_feeds_come_back_in_order(tmp_path: Path) -> None:
    feeds = [{"x": np.full((1, 2), i), "y": np.array([i])} for i in range(12)]
    save_feeds(feeds, tmp_path / "feeds.npz")
    for before, after in zip(feeds, load_feeds(tmp_path / "feeds.npz"), strict=True):
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[name], after[name]) for name in before)


def test_case_names_lead_to_cases_of_that_batch() -> None:
    case = models.make_case("digits_cnn-b2")
    assert (case.name, case.batch) == ("digits_cnn-b2", 2)
    assert all(len(each["x"]) == 2 for each in case.evaluation)
    assert case.quality is not None
    with torch.no_grad():
        assert case.quality(case.model)["test accuracy"] > 0.98
    with pytest.raises(KeyError, match="no model nothing; known: digits_cnn"):
        models.make_case("nothing")


def test_divergence_is_the_textbooks() -> None:
    case = models.make_case("digits_cnn")
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    kl = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert divergence_of(case, [q.log()], [p.log()]) == pytest.approx(kl, rel=1e-5)


@pytest.mark.slow
def test_tools_failures_are_kept_with_their_message(tmp_path: Path) -> None:
    source = tmp_path / "float.onnx"
    source.write_bytes(b"no model")
    save_feeds([], tmp_path / "feeds.npz")
    peer = make_peer(
        "benchmarks.onnxruntime.peers",
        "dynamic",
        source,
        tmp_path / "feeds.npz",
        tmp_path / "out.onnx",
    )
    assert peer.failure
    assert not peer.path.exists()


class UnitLength(Tiny):
    """ONNX Runtime's symbolic shape inference fails on the norm of this."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(super().forward(x))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["static", "static per channel, layers only", "dynamic"])
def test_a_model_that_the_tool_infers_no_shapes_of(tmp_path: Path, method: str) -> None:
    case = replace(tiny_case(), model=UnitLength().eval())
    source = export_float(case, tmp_path / "float.onnx")
    peer = make_peer(PEERS, method, source, tmp_path / FEEDS, tmp_path / "out.onnx")
    assert peer.failure is None
    expected, found = (
        torch.cat(outputs_of(OnnxVariant(name="", path=file).open(1), case.evaluation))
        for file in (source, peer.path)
    )
    assert 0 < float((found - expected).square().mean() / expected.square().mean()) < 0.05


@pytest.mark.slow
def test_one_case_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "cache"))
    options = Options(
        target="neoverse-v2", threads=(1,), seconds=0.2, trials=2, samples=4, work=tmp_path
    )
    result = json.loads(json.dumps(compare.compare(tiny_case(), options)))
    rows = {row["name"]: row for row in result["rows"]}
    assert all(row["failure"] is None or row["origin"] != "float" for row in result["rows"])
    assert rows["float32"]["divergence"] == 0
    assert rows["uniform fp32"]["divergence"] < NO_LOSS
    for name in ("static", "dynamic", "uniform w8a8"):
        assert rows[name]["failure"] is None
        assert 0 < rows[name]["divergence"] < 0.1
        assert rows[name]["size_bytes"] < rows["float32"]["size_bytes"]
    # PyTorch writes a linear layer on rows as a Gemm.
    assert rows["matmul 4 bits"]["failure"].startswith("the model has no MatMul")
    for name, timing in result["timings"]["1"].items():
        assert rows[name]["quality"] == {"finite": 1.0}
        assert timing["low"] <= timing["ratio"] <= timing["high"]
    assert result["timings"]["1"].keys() >= {"latency (threads=1)", "auto (threads=1)"}
    # The textbook's value, from the files themselves.
    case = tiny_case()
    files = [tmp_path / "tiny" / name for name in ("float.onnx", "peers/dynamic.onnx")]
    expected, found = (
        torch.cat(outputs_of(OnnxVariant(name="", path=file).open(1), case.evaluation[:4]))
        for file in files
    )
    error = (found - expected).square().mean() / expected.square().mean()
    assert rows["dynamic"]["divergence"] == pytest.approx(float(error), rel=1e-4)
    # The same files, opened with and without the setting that makes sums exact.
    both = saturation.measure(case, tmp_path / "tiny", (1,), seconds=0.2, samples=4)
    opened = {row["name"]: row for row in both["rows"]}
    for name, way in (("dynamic", "default"), ("uniform w8a8-dynamic", "exact")):
        assert opened[f"{name}, {way}"]["divergence"] == rows[name]["divergence"]
    assert {f"dynamic, {way}" for way in saturation.WAYS} <= both["timings"]["1"].keys()
    page = summarise.render([result], None, {"cases": {"tiny": both}})
    assert "## tiny, 1 thread" in page
    assert "| dynamic |" in page
    assert "| tiny | dynamic per channel |" in page


def test_claims_are_judged_by_the_numbers() -> None:
    verdicts = {each.claim.partition(" ")[0]: each for each in claims.check_claims(example())}
    assert verdicts["no"].holds
    assert verdicts['objective="latency"'].holds
    assert verdicts["as"].holds
    assert verdicts["as"].numbers == "0.001 against 0.01 of static"
    assert verdicts["at"].holds
    assert verdicts["at"].numbers == "60% at +4.0% latency"


@pytest.mark.parametrize(
    ("low", "said"),
    [
        (0.51, "1.92x against 2.00x of static"),
        (0.49, "1.92x against 2.00x of static; their intervals overlap"),
    ],
)
def test_a_claim_says_whether_the_clock_tells_the_files_apart(low: float, said: str) -> None:
    result = example()
    result["timings"]["1"]["latency (threads=1)"] |= {"ratio": 0.52, "low": low, "high": 0.53}
    verdicts = {each.claim.partition(" ")[0]: each for each in claims.check_claims(result)}
    found = verdicts['objective="latency"']
    assert not found.holds
    assert found.numbers == said


@pytest.mark.parametrize(
    ("row", "change", "claim"),
    [
        ("latency (threads=1)", {"ratio": 0.53}, 'objective="latency"'),
        ("latency (threads=1)", {"divergence": 0.02}, "as"),
        ("latency (threads=1)", {"size_bytes": 103}, "as"),
        ("latency (threads=1)", {"divergence": 0.02, "ratio": 0.501}, "no"),
        ("all-int8 latency + 5 % (threads=1)", {"divergence": 0.006}, "at"),
        ("all-int8 latency + 5 % (threads=1)", {"ratio": 0.56}, "at"),
    ],
)
def test_claims_fail_when_a_number_does(row: str, change: dict[str, float], claim: str) -> None:
    result = example()
    timing = result["timings"]["1"][row]
    record = next(each for each in result["rows"] if each["name"] == row)
    for name, value in change.items():
        (timing if name == "ratio" else record)[name] = value
    verdicts = claims.check_claims(result)
    assert claim in {each.claim.partition(" ")[0] for each in verdicts if not each.holds}


@pytest.mark.parametrize(
    ("features", "ratio", "holds"),
    [(["avx2"], 0.5, []), (["avx512_vnni"], 0.5, [False]), (["avx2", "avx_vnni"], 0.4, [True])],
)
def test_speed_of_resnet_is_claimed_with_vnni_only(
    features: list[str], ratio: float, holds: list[bool]
) -> None:
    result = example() | {"case": "resnet18", "machine": {"features": features}}
    result["timings"]["1"]["latency (threads=1)"]["ratio"] = ratio
    found = [each for each in claims.check_claims(result) if each.claim.startswith("with VNNI")]
    assert [each.holds for each in found] == holds


def example() -> dict[str, Any]:
    """A result in which every claim holds."""
    numbers = {
        "float32": ("float", 400, 1.0, 0.0),
        "static": ("peer", 100, 0.5, 0.01),
        "uniform w8a8": ("uniform", 100, 0.5, 0.01),
        "latency (threads=1)": ("plan", 101, 0.5, 0.001),
        "all-int8 latency + 5 % (threads=1)": ("plan", 120, 0.52, 0.004),
    }
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "origin": origin,
            "size_bytes": size,
            "divergence": divergence,
            "quality": {},
            "failure": None,
            "timed_at": None,
        }
        for name, (origin, size, _, divergence) in numbers.items()
    ]
    timings = {
        name: {"ratio": ratio, "low": ratio, "high": ratio, "median_s": ratio}
        for name, (_, _, ratio, _) in numbers.items()
    }
    return {
        "case": "one",
        "is_trained": True,
        "machine": {"features": ["avx2"]},
        "rows": rows,
        "timings": {"1": timings},
    }


def test_prediction_errors_by_hand() -> None:
    rows: list[dict[str, Any]] = [
        {"predicted_s": 1.1, "measured_s": 1.0},
        {"predicted_s": 1.0, "measured_s": 2.0},
        {"predicted_s": 3.0, "measured_s": 3.0},
    ]
    found = errors_of(rows)
    assert found["median_error"] == pytest.approx(0.1)
    assert found["p90_error"] == pytest.approx(0.1 + 0.8 * 0.4)
    assert found["spearman"] == pytest.approx(0.5)
    settings: list[dict[str, Any]] = [
        {"plans": rows, "spearman": 0.5},
        {"plans": rows[::-1], "spearman": 1.0},
    ]
    assert overall(settings)["spearman"] == pytest.approx(0.75)
    # Every row twice: ranks 3.5, 1.5, 5.5 against 1.5, 3.5, 5.5, twice each.
    assert overall(settings)["pooled_spearman"] == pytest.approx(0.5)
