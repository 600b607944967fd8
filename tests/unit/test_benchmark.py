"""Sums over timings, against textbook values and brute force."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from scipy.stats import binom

from advisor.cli.bench import show_benchmark
from advisor.errors import UsageError
from advisor.targets.benchmark import (
    LEAST_ROUNDS,
    Benchmark,
    Ratio,
    paired_ratio,
    summarise,
    time_in_turns,
)
from advisor.targets.resident import is_known


@pytest.mark.parametrize("count", [6, 7, 9, 20, 40, 101])
def test_interval_of_the_median_is_the_tightest_with_95_percent(count: int) -> None:
    values = [float(v) for v in np.random.default_rng(count).permutation(count)]
    found = Ratio.of(values)
    cut = int(found.low)
    assert (found.low, found.high) == (cut, count - 1 - cut)
    assert found.value == median(values)
    missed = 2 * binom.cdf(cut, count, 0.5)
    assert missed <= 0.05 < 2 * binom.cdf(cut + 1, count, 0.5)


def test_interval_holds_the_true_median_as_often_as_promised() -> None:
    draws = np.random.default_rng(0).lognormal(mean=0.0, sigma=0.5, size=(2000, 25))
    held = [ratio.low <= 1.0 <= ratio.high for ratio in map(Ratio.of, draws.tolist())]
    assert np.mean(held) >= 0.94


def test_ratio_compares_within_rounds() -> None:
    """The machine gets ten times slower half way; each round still compares like with like."""
    drift = [1.0] * 5 + [10.0] * 5
    base = [[2 * d, 2 * d, 9 * d] for d in drift]
    plan = [[1 * d, 1 * d] for d in drift]
    assert paired_ratio(plan, base) == Ratio(value=0.5, low=0.5, high=0.5)


def test_summary_is_consistent() -> None:
    visits = [[3.0, 1.0], [2.0, 4.0]]
    found = summarise(visits, batch=8, memory=None, file_bytes=7)
    assert (found.latency_min_s, found.latency_s) == (1.0, 2.5)
    assert found.latency_p90_s == pytest.approx(np.percentile([1, 2, 3, 4], 90))
    assert found.throughput_per_s == pytest.approx(8 * 4 / 10)


def test_rounds_take_turns_in_alternating_order() -> None:
    seen: list[str] = []
    reported: list[tuple[str, int, int]] = []

    def call(name: str) -> None:
        seen.append(name)
        time.sleep(0.001)

    times = time_in_turns(
        [lambda: call("a"), lambda: call("b")],
        rounds=LEAST_ROUNDS,
        seconds=0.1,
        progress=lambda *step: reported.append(step),
    )
    visits = [name for name, _ in itertools.groupby(seen[4:])]
    assert "".join(visits) == "abababa"  # two visits in a row are one group
    assert [len(t) for t in times] == [LEAST_ROUNDS] * 2
    assert all(value >= 0.001 for rounds in times for visit in rounds for value in visit)
    assert reported[-1] == ("timing", LEAST_ROUNDS, LEAST_ROUNDS)


@pytest.mark.parametrize(
    ("rounds", "seconds", "said"),
    [(5, 1.0, "needs 6"), (6, 0.0, "positive"), (6, float("nan"), "positive")],
)
def test_too_little_is_refused(rounds: int, seconds: float, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        time_in_turns([lambda: None], rounds=rounds, seconds=seconds)


def test_table_without_memory_says_so() -> None:
    variant = summarise([[0.001]], batch=1, memory=None, file_bytes=10)
    found = Benchmark(
        float_model=variant,
        plan=variant,
        latency_ratio=Ratio(value=1.0, low=0.9, high=1.1),
        rounds=6,
        batch=1,
        shapes={"x": (1, 2)},
        threads=None,
        executed_by="runtime 1",
        cpu="cpu",
    )
    listing = show_benchmark(found)
    assert [row[0] for row in listing.rows][-1] == "files"
    assert "1.00 (0.90 to 1.10)" in listing.rows[0]
    assert listing.lines[-1] == "memory: this system does not tell a process its own"


@pytest.mark.skipif(not is_known(), reason="this system does not tell")
def test_memory_of_a_process_follows_what_it_holds(root: Path) -> None:
    code = (
        "from advisor.targets.resident import *\n"
        "before = resident_bytes(); can = restart_peak()\n"
        "held = bytearray(b'x') * 50_000_000; top = resident_bytes()\n"
        "del held; print(before, top, resident_bytes(), peak_bytes(), int(can))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    before, top, after, peak, _ = map(int, done.stdout.split())
    assert top - before == pytest.approx(50e6, rel=0.1)
    assert after - before < 10e6
    assert peak == pytest.approx(top, rel=0.02)
