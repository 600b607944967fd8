"""The progress bar's time left, by a clock that the test turns."""

from __future__ import annotations

import io

from rich.console import Console

from advisor.cli.progress import show_progress


def draw(seconds: list[float], total: int) -> str:
    """What the bar shows last when the steps so far took ``seconds``."""
    now = 0.0
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, legacy_windows=False)
    with show_progress(True, console=console, clock=lambda: now) as report:
        assert report is not None
        report("search", 0, total)
        for done, each in enumerate(seconds, 1):
            now += each
            report("search", done, total)
    return screen.getvalue().rpartition("search")[2]


def test_the_time_left_is_the_steps_left_at_the_speed_so_far() -> None:
    assert "0:00:12" in draw([2.0] * 4, 10)  # six steps of two seconds
    assert "0:05:00" in draw([30.0] * 2, 12)  # ten of thirty
    assert "4/10" in draw([2.0] * 4, 10)


def test_the_speed_is_that_of_the_last_half_minute() -> None:
    """Four slow steps, then fifty quick ones: what is left will be quick too."""
    shown = draw([100.0] * 4 + [1.0] * 50, 64)
    assert "0:00:10" in shown


def test_nothing_is_promised_before_there_is_a_speed() -> None:
    assert "-:--:--" in draw([5.0], 10)
    # How many steps there are is not known.
    unknown = draw([5.0] * 3, 0)
    assert "3/?" in unknown
    assert ":" not in unknown


def test_nothing_is_drawn_where_nobody_looks() -> None:
    with show_progress(False) as report:
        assert report is None
    with show_progress(True) as report:  # standard error is no terminal here
        assert report is None
