"""A search that was killed ends with the plan of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path
import torch
from advisor import advise
from advisor.demo import digits
from advisor.planfile import plan_to_json

torch.set_num_threads(1)
images = digits.data()
plan = advise(
    digits.load(), target="intel-vnni", budget="size=120kB", objective="accuracy",
    calibration=images.calibration_batches(64), trials=8, seed=5, schemes=["fp16", "w8", "w4-g32"],
)
Path(sys.argv[1]).write_text(plan_to_json(plan))
"""
DEADLINE_S = 240


def begin(cache: Path, out: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "ADVISOR_CACHE": str(cache)}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(out)], env=environment)


def finish(process: subprocess.Popen[bytes]) -> None:
    assert process.wait(timeout=DEADLINE_S) == 0


def kept(cache: Path, pattern: str, word: bytes) -> int:
    """How often a word is in the files that the search keeps."""
    return sum(path.read_bytes().count(word) for path in cache.rglob(pattern))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL there")
def test_killed_twice_and_resumed_it_is_the_same_plan(tmp_path: Path) -> None:
    finish(begin(tmp_path / "whole", tmp_path / "whole.json"))
    cache = tmp_path / "cut"
    # Once while choices are measured alone, once in the middle of the trials.
    for pattern, word, count in (
        ("*.measured/*.json", b"scoring:", 2),
        ("*.journal", b'"record"', 3),
    ):
        process = begin(cache, tmp_path / "never.json")
        ends = time.monotonic() + DEADLINE_S
        while kept(cache, pattern, word) < count and time.monotonic() < ends:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=DEADLINE_S)
        assert not (tmp_path / "never.json").exists()
    measured = kept(cache, "*.journal", b'"record"')
    assert measured < 8
    finish(begin(cache, tmp_path / "cut.json"))
    assert (tmp_path / "cut.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
