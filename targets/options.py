"""Ways to write a runtime's files: options that a target declares as data, and their checking.

A target with a choice to offer has a field ``options``: a frozen dataclass of its defaults, in
which every field is a choice among words (``Literal``) or a text with a rule (``Free``). No option
changes what is computed; that is the plan's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import PurePath
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

from advisor.errors import UsageError
from advisor.targets.base import Configurable, Target


@dataclass(frozen=True, slots=True)
class Free:
    """Marks an option that is no choice among words: ``Annotated[str, Free(...)]``.

    takes: what it may be besides its default, in words. read: raises ValueError for what it may
    not be.
    """

    takes: str
    read: Callable[[str], object]


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
    """The words that every option can be, the default first; of a free one what it takes.

    kind: the target's dataclass.
    """
    defaults = kind()
    return {
        name: tuple(
            dict.fromkeys(
                (getattr(defaults, name), *((rule.takes,) if isinstance(rule, Free) else rule))
            )
        )
        for name, rule in _rules(kind).items()
    }


def _rules(kind: type) -> dict[str, Free | tuple[str, ...]]:
    """By option the words it can be, or the rule of a free one."""
    hints = get_type_hints(kind, include_extras=True)
    found: dict[str, Free | tuple[str, ...]] = {}
    for each in fields(kind):
        arguments = get_args(hints[each.name])
        is_free = get_origin(hints[each.name]) is Annotated
        found[each.name] = arguments[1] if is_free else arguments
    return found


def check_options(runtime: str, options: object) -> None:
    """Check that every option can be what it is. options: a target's own dataclass.

    Raises:
        UsageError: one of them cannot.
    """
    _checked(runtime, options, {})


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
    rules = _rules(options.__class__)
    texts = {
        name: _as_text(value) if isinstance(rules[name], Free) else value
        for name, value in given.items()
    }
    made, defaults = replace(options, **texts), options.__class__()
    for name, rule in rules.items():
        value = getattr(made, name)
        if value == getattr(defaults, name):
            continue
        if isinstance(rule, Free):
            _check_free(runtime, name, value, rule)
        elif value not in rule:
            raise UsageError(
                f"option {name}={value!r} of {runtime}: possible are {', '.join(possible[name])}"
            )
    return made


def _as_text(value: object) -> object:
    """Numbers, paths and rows of numbers as a command line has them."""
    if isinstance(value, (list, tuple)):
        return ",".join(str(each) for each in cast("Sequence[object]", value))
    is_plain = isinstance(value, (int, float, PurePath)) and not isinstance(value, bool)
    return str(value) if is_plain else value


def _check_free(runtime: str, name: str, value: object, rule: Free) -> None:
    problem = "not a text"
    if isinstance(value, str):
        try:
            rule.read(value)
        except ValueError as error:
            problem = str(error)
        else:
            return
    raise UsageError(f"option {name}={value!r} of {runtime} takes {rule.takes}: {problem}")


def _example(options: Any) -> str:
    name, words = next(iter(choices(options.__class__).items()))
    return repr({name: words[-1]})
