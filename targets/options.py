"""Ways to write a runtime's files: options that a target declares as data, and their checking.

A target with a choice to offer has a field ``options``: a frozen dataclass of its defaults, in
which every field is a choice among words (``Literal``). No option changes what is computed; that
is the plan's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any, cast, get_args, get_type_hints

from advisor.errors import UsageError
from advisor.targets.base import Configurable, Target


def configure(
    target: Target, runtime: str, options: object | None, defaults: Mapping[str, str]
) -> Target:
    """The target that writes its files as asked.

    options: the target's own dataclass, or a mapping of names to words. defaults: what holds for
    options that are not given as a mapping, such as a profile's; only those the target has.

    Raises:
        UsageError: the target has no such option, or the option no such word.
    """
    if not isinstance(target, Configurable):
        if options:
            raise UsageError(
                f"{runtime} has no options, but {options!r} was asked for; leave options out"
            )
        return target
    if options is not None and isinstance(options, type(target.options)):
        return target.with_options(_checked(runtime, options, {}))
    if options is not None and not isinstance(options, Mapping):
        raise UsageError(
            f"options={options!r}: {runtime} takes {type(target.options).__name__}, or a mapping "
            f"such as {_example(target.options)}"
        )
    given = cast("Mapping[str, Any]", options or {})
    return target.with_options(_checked(runtime, target.options, {**defaults, **given}))


def choices(kind: type) -> dict[str, tuple[str, ...]]:
    """The words that every option can be, the default first. kind: the target's dataclass."""
    hints, defaults = get_type_hints(kind), kind()
    return {
        each.name: tuple(dict.fromkeys((getattr(defaults, each.name), *get_args(hints[each.name]))))
        for each in fields(kind)
    }


def parse_options(texts: Sequence[str]) -> dict[str, str]:
    """Options as a command line has them: "io=int8".

    Raises:
        UsageError: one of them has no "=", or is given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name in found:
            problem = "is given twice" if equals else "has no '='"
            raise UsageError(f"option {text!r} {problem}; write NAME=VALUE, such as io=int8")
        found[name] = value
    return found


def _checked(runtime: str, options: Any, given: Mapping[str, Any]) -> Any:
    possible = choices(options.__class__)
    for name in given:
        if name not in possible:
            close = get_close_matches(str(name), possible)
            hint = f"did you mean {close[0]}? " if close else ""
            listing = "; ".join(f"{key}: {' or '.join(words)}" for key, words in possible.items())
            raise UsageError(f"{runtime} has no option {name!r}; {hint}options: {listing}")
    made = replace(options, **given)
    for name, words in possible.items():
        if getattr(made, name) not in words:
            raise UsageError(
                f"option {name}={getattr(made, name)!r} of {runtime}: possible are "
                f"{', '.join(words)}"
            )
    return made


def _example(options: Any) -> str:
    name, words = next(iter(choices(options.__class__).items()))
    return repr({name: words[-1]})
