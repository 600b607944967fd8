"""Waiting until other threads rest. How long that takes decides nothing."""

from __future__ import annotations

import hashlib
import threading

import pytest

from advisor.targets import idle
from advisor.targets.idle import wait_until_idle


class Spinner:
    """A thread that computes until it is told to stop; hashing lets go of Python's lock."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._spin)
        self.thread.start()

    def _spin(self) -> None:
        block = bytes(2**20)
        while not self.stop.is_set():
            hashlib.sha256(block).digest()


def test_process_at_rest_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    windows: list[float] = []
    monkeypatch.setattr(idle, "sleep", windows.append)
    monkeypatch.setattr(idle, "_others_s", lambda: 0.0)
    wait_until_idle()
    assert windows == [idle.WINDOW_S]


def test_spinning_thread_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops by itself; not before that is the process idle."""
    monkeypatch.setattr(idle, "PATIENCE_S", 60.0)
    spinner = Spinner()
    timer = threading.Timer(0.3, spinner.stop.set)
    timer.start()
    wait_until_idle()
    assert spinner.stop.is_set()
    spinner.thread.join()


def test_thread_that_never_rests_ends_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "PATIENCE_S", 0.05)
    spinner = Spinner()
    try:
        wait_until_idle()
        assert spinner.thread.is_alive()
    finally:
        spinner.stop.set()
        spinner.thread.join()
