"""JSON values to frozen dataclasses and back, driven by the dataclasses' own type hints.

Strict in both directions: a field too many, a field too few, a wrong type or a number that is not
finite is a ``FieldError`` that carries the path of the field, such as ``layers[3].scheme``.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import types
from collections.abc import Mapping
from typing import (
    Any,
    Literal,
    TypeGuard,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from advisor.errors import UsageError

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]
Record = TypeVar("Record")

_FIELD_TYPES: dict[type[object], dict[str, object]] = {}
"""Type hints by dataclass; reading them costs more than parsing a small record."""


class FieldError(UsageError):
    """A value that does not fit its field; ``path`` is where, ``problem`` is what."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path or 'the document'}: {problem}")


def parse_record(kind: type[Record], value: object, path: str = "") -> Record:
    """An instance of the dataclass ``kind`` from a JSON object.

    Raises:
        FieldError: unknown or missing field, wrong type, or a number that is not finite.
    """
    if not _is_object(value):
        raise FieldError(path, f"expected an object with {kind.__name__}'s fields, {_found(value)}")
    hints = field_types(kind)
    for key in value:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise FieldError(_join(path, key), f"unknown field{hint}")
    for key in hints:
        if key not in value:
            raise FieldError(_join(path, key), "missing field")
    return kind(
        **{key: parse_value(hint, value[key], _join(path, key)) for key, hint in hints.items()}
    )


def parse_value(hint: object, value: object, path: str) -> object:
    """``value`` checked against a type hint and converted (lists to tuples, objects to records)."""
    origin = get_origin(hint)
    if origin is Union or origin is types.UnionType:
        return _parse_optional(hint, value, path)
    if origin is Literal:
        allowed = cast("tuple[object, ...]", get_args(hint))
        if value not in allowed:
            raise FieldError(
                path, f"expected one of {', '.join(map(repr, allowed))}, {_found(value)}"
            )
        return value
    if origin is tuple:
        return _parse_items(get_args(hint)[0], value, path)
    if origin is Mapping:
        if not _is_object(value):
            raise FieldError(path, f"expected an object, {_found(value)}")
        item = get_args(hint)[1]
        return {key: parse_value(item, each, _join(path, key)) for key, each in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return cast("object", parse_record(hint, value, path))
    return _parse_scalar(hint, value, path)


def dump_record(record: object, path: str = "") -> dict[str, Json]:
    """The JSON object of a dataclass instance, each number in the type its field declares.

    Raises:
        FieldError: a number that is not finite, or a value that is not what its field declares.
    """
    hints = field_types(type(record))
    return {
        name: dump_value(hint, getattr(record, name), _join(path, name))
        for name, hint in hints.items()
    }


def dump_value(hint: object, value: object, path: str) -> Json:
    """One value as JSON; an int in a float field becomes a float: equal plans give equal text."""
    origin = get_origin(hint)
    if origin is Union or origin is types.UnionType:
        return None if value is None else dump_value(_without_none(hint), value, path)
    if origin is tuple and isinstance(value, tuple):
        item = get_args(hint)[0]
        items = cast("tuple[object, ...]", value)
        return [dump_value(item, each, f"{path}[{index}]") for index, each in enumerate(items)]
    if origin is Mapping and isinstance(value, Mapping):
        item = get_args(hint)[1]
        entries = cast("Mapping[str, object]", value)
        return {key: dump_value(item, each, _join(path, key)) for key, each in entries.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, hint):
        return cast("Json", dump_record(value, path))
    if hint is float or hint is int:
        value = _plain_number(hint, value, path)
    return cast("Json", parse_value(hint, value, path))


def field_types(kind: type[object]) -> dict[str, object]:
    """Type hint of every field of a dataclass, in declaration order."""
    if kind not in _FIELD_TYPES:
        hints = get_type_hints(kind)
        # cast: dataclasses.fields wants a dataclass type, and callers pass only those.
        fields = dataclasses.fields(cast("Any", kind))
        _FIELD_TYPES[kind] = {field.name: hints[field.name] for field in fields}
    return _FIELD_TYPES[kind]


def _parse_optional(hint: object, value: object, path: str) -> object:
    return None if value is None else parse_value(_without_none(hint), value, path)


def _parse_items(item: object, value: object, path: str) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise FieldError(path, f"expected a list, {_found(value)}")
    items = cast("list[object]", value)
    return tuple(parse_value(item, each, f"{path}[{index}]") for index, each in enumerate(items))


def _parse_scalar(hint: object, value: object, path: str) -> object:
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise FieldError(path, f"expected a finite number, {_found(value)}")
        return number
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if (hint is bool and isinstance(value, bool)) or (hint is str and isinstance(value, str)):
        return value
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    if not isinstance(hint, type) or hint not in words:
        raise TypeError(f"{path}: no JSON form for the type {hint}")
    raise FieldError(path, f"expected {words[hint]}, {_found(value)}")


def _plain_number(hint: object, value: object, path: str) -> object:
    """NumPy scalars as the built-in number, so that their JSON is the built-in's."""
    if isinstance(value, bool | str | None):
        return value
    try:
        return operator.index(cast("Any", value)) if hint is int else float(cast("Any", value))
    except (TypeError, ValueError, OverflowError):
        raise FieldError(path, f"expected a number, {_found(value)}") from None


def _without_none(hint: object) -> object:
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if len(kinds) != 1:
        raise TypeError(f"only 'X | None' unions have a JSON form, not {hint}")
    return kinds[0]


def _is_object(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def _join(path: str, key: str) -> str:
    name = key if key.isidentifier() else f"[{key!r}]"
    return f"{path}.{name}" if path and key.isidentifier() else f"{path}{name}"


def _found(value: object) -> str:
    match value:
        case dict():
            return "found an object"
        case list():
            return "found a list"
        case None:
            return "found null"
        case _:
            text = repr(value)
            return f"found {text if len(text) <= 60 else text[:57] + '...'}"
