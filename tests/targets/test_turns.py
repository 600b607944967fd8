"""Whose turn it is when models are timed. How long anything takes decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from advisor.targets import turns
from advisor.targets.turns import LEAST_ROUNDS, Opened, time_in_turns

MODELS = 5


def watched(
    monkeypatch: pytest.MonkeyPatch, *, free: float = 1e12, threads: int = 1
) -> tuple[list[int], int]:
    """The models in the order of their turns, and how many times were found."""
    monkeypatch.setattr(turns, "VISIT_S", 0.0)  # a turn is two runs: one to warm, one that counts
    monkeypatch.setattr(turns, "SLOW", float("inf"))
    monkeypatch.setattr(turns, "free_bytes", lambda: free)
    seen: list[int] = []

    def build(number: int) -> int:
        return number

    def open_model(number: int) -> Opened:
        return Opened(run=partial(seen.append, number), file_bytes=1)

    builders: list[Callable[[], int]] = [partial(build, number) for number in range(MODELS)]
    found = time_in_turns(
        builders, open_model, threads=threads, limit_s=0.0, say=lambda _done, _all: None
    )
    assert seen[::2] == seen[1::2]
    return seen[::2], len(found)


def test_every_round_has_all_models_in_an_order_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, found = watched(monkeypatch)
    rounds = [tuple(seen[i : i + MODELS]) for i in range(0, len(seen), MODELS)]
    assert found == MODELS
    assert len(rounds) == len(set(rounds)) == LEAST_ROUNDS
    assert all(sorted(each) == list(range(MODELS)) for each in rounds)
    again, _ = watched(monkeypatch)
    assert again == seen


def test_without_memory_each_model_is_timed_beside_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, found = watched(monkeypatch, free=0.0)
    assert found == MODELS
    own = {number: seen.count(number) for number in range(1, MODELS)}
    assert own == dict.fromkeys(range(1, MODELS), LEAST_ROUNDS)
    assert seen.count(0) == LEAST_ROUNDS * MODELS


@pytest.mark.parametrize(("threads", "waits"), [(1, 0), (2, LEAST_ROUNDS * MODELS)])
def test_turns_of_several_threads_wait_for_the_others(
    monkeypatch: pytest.MonkeyPatch, threads: int, waits: int
) -> None:
    waited: list[None] = []
    monkeypatch.setattr(turns, "wait_until_idle", lambda: waited.append(None))
    watched(monkeypatch, threads=threads)
    assert len(waited) == waits
