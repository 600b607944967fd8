"""Waiting until other threads rest. How long that takes decides nothing."""

from __future__ import annotations

import hashlib
import threading
from itertools import chain, repeat
from time import thread_time

import pytest

from advisor.targets import idle
from advisor.targets.idle import wait_until_idle

BLOCK = bytes(2**20)
WORK_S = 0.2


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was slept."""
    found: list[float] = []
    monkeypatch.setattr(idle, "sleep", found.append)
    return found


def test_process_at_rest_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, windows: list[float]
) -> None:
    monkeypatch.setattr(idle, "_others_s", lambda: 0.0)
    wait_until_idle()
    assert windows == [idle.WINDOW_S]


def test_busy_threads_are_waited_for(monkeypatch: pytest.MonkeyPatch, windows: list[float]) -> None:
    """Before and after each window: they work in the first two and rest in the third."""
    spent_s = chain([0.0, 1.0, 1.0, 2.0], repeat(2.0))
    monkeypatch.setattr(idle, "PATIENCE_S", 60.0)
    monkeypatch.setattr(idle, "_others_s", lambda: next(spent_s))
    wait_until_idle()
    assert windows == [idle.WINDOW_S] * 3


def test_threads_that_never_rest_end_the_patience(
    monkeypatch: pytest.MonkeyPatch, windows: list[float]
) -> None:
    now_s, spent_s = iter(range(1000)), iter(range(1000))
    monkeypatch.setattr(idle, "PATIENCE_S", 9)
    monkeypatch.setattr(idle, "perf_counter", lambda: next(now_s))
    monkeypatch.setattr(idle, "_others_s", lambda: next(spent_s))
    wait_until_idle()  # looks at the clock three times a window, and once before
    assert len(windows) == 3


def test_time_of_other_threads_alone_is_counted() -> None:
    """By each thread's own clock; hashing lets go of Python's lock."""
    spent_s: list[float] = []

    def work() -> None:
        while thread_time() < WORK_S:
            hashlib.sha256(BLOCK).digest()
        spent_s.append(thread_time())

    before_s, own_s = idle._others_s(), thread_time()
    thread = threading.Thread(target=work)
    thread.start()
    while thread_time() - own_s < WORK_S:  # this thread's time does not count
        hashlib.sha256(BLOCK).digest()
    thread.join()
    assert idle._others_s() - before_s == pytest.approx(spent_s[0], abs=WORK_S / 4)
