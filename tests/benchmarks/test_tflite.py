"""The comparison on LiteRT with uniform plans and stock recipes, on a model for a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.claims import NO_LOSS
from benchmarks.command import Options
from benchmarks.measure import feed_of
from benchmarks.tflite import claims, compare, summarise
from benchmarks.tflite.measure import TfliteVariant
from tests.benchmarks.tiny import tiny_case


@pytest.mark.slow
def test_one_case_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "cache"))
    options = Options(
        target="arm-neon", threads=(1,), seconds=0.2, trials=2, samples=4, work=tmp_path
    )
    case = tiny_case()
    result = json.loads(json.dumps(compare.compare(case, options)))
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["float32"]["divergence"] == 0
    assert rows["uniform fp32"]["divergence"] < NO_LOSS
    for name in ("static_wi8_ai8", "dynamic_wi8_afp32", "uniform w8a8", "uniform w4a8-dynamic"):
        assert rows[name]["failure"] is None
        assert 0 < rows[name]["divergence"] < 0.1
        assert rows[name]["size_bytes"] < rows["float32"]["size_bytes"]
    assert (rows["uniform fp32"]["partitions"], rows["uniform fp32"]["left_out"]) == (1, 0)
    # Both layers of four bits are left out, each behind a DEQUANTIZE.
    assert (rows["uniform w4"]["partitions"], rows["uniform w4"]["left_out"]) == (0, 4)
    timings = result["timings"]["1"]
    assert all(each["low"] <= each["ratio"] <= each["high"] for each in timings.values())
    assert "accuracy, bytes of weight_only_wi8_afp32 (threads=1)" in timings
    # A static file has int8 ends; what is compared is floats.
    feed = feed_of(case.example)
    plain, static = (
        np.asarray(TfliteVariant(name="", path=tmp_path / "tiny" / name).open(1)(feed)[0])
        for name in ("float.tflite", "peers/static_wi8_ai8.tflite")
    )
    assert static.dtype == np.float32
    np.testing.assert_allclose(static, plain, atol=0.1)
    page = summarise.render([result])
    assert "## tiny, 1 thread" in page
    assert "| static_wi8_ai8 |" in page


def example() -> dict[str, Any]:
    """A result in which every claim holds."""
    numbers = {
        "float32": ("float", 400, 1.0, 0.0),
        "dynamic_wi8_afp32": ("peer", 100, 0.5, 0.01),
        "uniform w8a8": ("uniform", 100, 0.4, 0.02),
        "latency (threads=1)": ("plan", 100, 0.41, 0.01),
        "accuracy, bytes of dynamic_wi8_afp32 (threads=1)": ("plan", 100, 0.6, 0.001),
    }
    rows = [
        {"name": name, "origin": origin, "size_bytes": size, "divergence": divergence}
        for name, (origin, size, _, divergence) in numbers.items()
    ]
    timings = {
        name: {"ratio": ratio, "low": ratio, "high": ratio}
        for name, (_, _, ratio, _) in numbers.items()
    }
    return {"case": "tiny", "is_trained": True, "rows": rows, "timings": {"1": timings}}


def test_claims_hold_by_the_numbers() -> None:
    verdicts = claims.check_claims(example())
    assert [verdict.holds for verdict in verdicts] == [True] * 4
    assert verdicts[3].numbers == "0.001 at 1.67x against 0.01 at 2.00x of dynamic_wi8_afp32"


@pytest.mark.parametrize(
    ("row", "change", "broken"),
    [
        ("latency (threads=1)", {"ratio": 0.42}, [0, 2]),
        ("latency (threads=1)", {"divergence": 0.02}, [2]),
        ("accuracy, bytes of dynamic_wi8_afp32 (threads=1)", {"size_bytes": 102}, [3]),
        ("accuracy, bytes of dynamic_wi8_afp32 (threads=1)", {"divergence": 0.01}, [1, 3]),
    ],
)
def test_claims_fail_when_a_number_does(
    row: str, change: dict[str, float], broken: list[int]
) -> None:
    result = example()
    for name, value in change.items():
        record = next(each for each in result["rows"] if each["name"] == row)
        (result["timings"]["1"][row] if name == "ratio" else record)[name] = value
    verdicts = claims.check_claims(result)
    assert [i for i, verdict in enumerate(verdicts) if not verdict.holds] == broken
