"""Options of a target: declared as data, checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from advisor.errors import UsageError
from advisor.targets.base import Configurable
from advisor.targets.options import Free, choices, configure, parse_options


@dataclass(frozen=True, kw_only=True)
class Colours:
    """A target's own options."""

    paint: Literal["red", "green"] = "green"
    finish: Literal["matt", "gloss"] = "matt"
    coats: Annotated[str, Free("whole numbers", lambda text: [int(n) for n in text.split(",")])] = (
        "none"
    )


@dataclass
class Painter:
    """As much of a target as options need."""

    options: Colours = field(default_factory=Colours)

    def with_options(self, options: Any) -> Painter:
        return Painter(options)


def painted(options: object, defaults: dict[str, str] | None = None) -> Colours:
    made = configure(Painter(), "wall", options, defaults or {})  # type: ignore[arg-type]  # no whole target
    assert isinstance(made, Configurable)
    found: Colours = made.options
    return found


def test_choices_begin_with_the_default() -> None:
    assert choices(Colours) == {
        "paint": ("green", "red"),
        "finish": ("matt", "gloss"),
        "coats": ("none", "whole numbers"),
    }


def test_given_beats_the_profile_which_beats_the_target() -> None:
    assert painted(None) == Colours()
    assert painted(None, {"finish": "gloss"}) == Colours(finish="gloss")
    assert painted({"paint": "red"}, {"finish": "gloss"}) == Colours(paint="red", finish="gloss")
    assert painted({"finish": "matt"}, {"finish": "gloss"}) == Colours()


def test_the_targets_own_dataclass_says_everything() -> None:
    assert painted(Colours(paint="red"), {"finish": "gloss"}) == Colours(paint="red")


def test_free_options_are_texts_that_their_rule_can_read() -> None:
    for given in ("2,3", (2, 3), [2, 3]):
        assert painted({"coats": given}) == Colours(coats="2,3")
    assert painted({"coats": 2}) == Colours(coats="2")
    assert painted({"coats": "none"}) == Colours()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"coats": "two"}, "coats='two' of wall takes whole numbers: invalid literal"),
        ({"coats": {}}, "coats={} of wall takes whole numbers: not a text"),
        ({"paints": "red"}, "no option 'paints'; did you mean paint?.*paint: green or red"),
        ({"paint": "blue"}, "paint='blue' of wall: possible are green, red"),
        ({"paint": 3}, "paint=3 of wall"),
        ("paint=red", "takes Colours, or a mapping such as {'paint': 'red'}"),
        (Colours(paint="blue"), "paint='blue'"),  # type: ignore[arg-type]  # a user's slip
    ],
)
def test_what_is_not_possible_is_refused(options: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        painted(options)


def test_a_target_without_options_takes_none() -> None:
    plain: Any = object()
    assert configure(plain, "plain", None, {}) is plain
    assert configure(plain, "plain", {}, {}) is plain
    with pytest.raises(UsageError, match="plain has no options"):
        configure(plain, "plain", {"io": "int8"}, {})


def test_texts_of_a_command_line() -> None:
    assert parse_options(["io=int8", "layout=model"]) == {"io": "int8", "layout": "model"}
    with pytest.raises(UsageError, match=r"'io' has no '='; write NAME=VALUE"):
        parse_options(["io"])
    with pytest.raises(UsageError, match="given twice"):
        parse_options(["io=int8", "io=float"])
