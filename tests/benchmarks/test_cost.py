"""The points, what is worked out of them, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from advisor.profiles.loader import load_profile
from advisor.targets.registry import capability_named
from benchmarks.cost import published, sizes, summarise
from benchmarks.cost.decisions import to_markdown
from benchmarks.cost.latency import overall as latency_overall
from benchmarks.cost.models import DECODERS, ENCODERS, PICTURES, PLAIN

POINTS = published.read_points()
SOURCE = {"source": "A page, table 1, https://example.org/a", "threads": None}


def test_there_are_points_enough() -> None:
    assert len(POINTS) >= 20
    assert len({point.profile for point in POINTS}) >= 8
    same = {(p.profile, p.model, p.size, p.batch, p.scheme, p.source) for p in POINTS}
    assert len(same) == len(POINTS)


@pytest.mark.parametrize("point", POINTS, ids=lambda p: f"{p.profile}-{p.model}-{p.scheme}")
def test_a_point_is_cited_and_can_be_predicted(point: published.Point) -> None:
    assert "https://" in point.source
    assert f"{point.value:g}" in point.says.replace(",", "")
    assert {**ENCODERS, **DECODERS, **PICTURES, **PLAIN}.get(point.model)
    profile = load_profile(point.profile)
    assert point.scheme in capability_named(profile.runtime).schemes
    assert 1e-5 < point.seconds < 1


@pytest.mark.parametrize(
    ("value", "unit", "seconds"),
    [(2.0, "ms", 2e-3), (50.0, "per-s", 0.02), (700.0, "per-s/14", 0.02)],
)
def test_seconds_of_one_forward(value: float, unit: str, seconds: float) -> None:
    point = published.Point(
        profile="t4",
        model="bert-base",
        size=128,
        batch=1,
        scheme="fp16",
        value=value,
        unit=unit,
        source="x",
        says="x",
    )
    assert point.seconds == pytest.approx(seconds)


def test_medians_and_shares() -> None:
    found = published.overall([{"ratio": ratio} for ratio in (0.4, 1.0, 1.4, 2.9, 4.0)])
    assert found == {
        "points": 5,
        "median_ratio": 1.4,
        "within_1.5x": 0.4,
        "within_2x": 0.4,
        "within_3x": 0.8,
    }
    files = sizes.overall([{"error": -0.004}, {"error": 0.02}])
    assert files == {"files": 2, "within_half_a_percent": 1, "largest_error": 0.02}
    plans = [{"modelled_s": 2.0 * k, "timed_s": 1.0 * k, "measured_s": 1.0 * k} for k in (1, 2, 3)]
    ranks = {"modelled": {"spearman": 1.0}, "timed": {"spearman": 0.5}}
    slower = [{name: 10 * value for name, value in plan.items()} for plan in plans]
    swapped = [{**plans[0], "timed_s": 2.0}, {**plans[1], "timed_s": 1.0}, plans[2]]
    timed = latency_overall(
        {
            "net x 1/onnxruntime/1": {"plans": plans, "noise": 0.01, **ranks},
            "net x 1/tflite/1": {"plans": slower, "noise": 0.03, **ranks},
            "other x 1/tflite/1": {"plans": swapped, "noise": 0.02, **ranks},
        }
    )
    assert timed["plans"] == 9
    assert timed["noise"] == 0.02
    assert timed["modelled"]["median_error"] == pytest.approx(1.0)
    assert timed["timed"]["median_error"] == 0.0
    # Within a setting the mean over settings; by model over all of its plans at once.
    assert timed["modelled"]["spearman"] == 1.0
    assert timed["timed"]["spearman"] == 0.5
    assert timed["timed"]["by_model"] == pytest.approx({"net x 1": 1.0, "other x 1": 0.5})


def test_the_page_has_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {
        **SOURCE,
        "profile": "t4",
        "model": "bert-base",
        "size": 128,
        "batch": 1,
        "scheme": "fp16",
        "published_s": 0.002,
        "predicted_s": 0.001,
        "ratio": 0.5,
        "parts": {"compute_s": 0.0008, "memory_s": 0.0002},
    }
    results = tmp_path / "published.json"
    results.write_text(json.dumps({"overall": published.overall([row]), "rows": [row]}))
    monkeypatch.setattr(published, "RESULTS", results)
    text = "\n".join(summarise.published_section())
    assert "| `t4` | bert-base | 128 | 1 | `fp16` | 2 ms | 1 ms | 0.50 | compute | 1 |" in text
    assert "1. [A page, table 1](https://example.org/a)" in text


def test_decisions_name_the_reasons() -> None:
    text = "\n".join(
        to_markdown(
            {
                "m4": {
                    "runtime": "coreml",
                    "weights": {"w8a8": 0.75, "fp16": 0.25},
                    "latency_s": 0.0012,
                    "uniform_s": {"fp16": 0.002, "w8a8": 0.001},
                    "breakdown": {"compute_s": 0.0009, "memory_s": 0.0003, "overhead_s": 0.0},
                    "arithmetic": {"w8a8": "computes in int8", "fp16": "computes in float16"},
                }
            }
        )
    )
    assert "`w8a8` 75%, `fp16` 25% | 1.2 | `w8a8` 1, `fp16` 2 | compute 75%, memory 25%" in text
    assert "- `m4`: `w8a8` computes in int8; `fp16` computes in float16." in text
