"""A profile as the text of a TOML file, which ``advisor.profiles.parse`` reads back to the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Final, cast

from advisor.profiles.schema import SCHEMA, Figure, Profile

ESTIMATE: Final = "estimate"
"""Figures of this origin have no source."""


def profile_toml(profile: Profile, comments: Sequence[str] = ()) -> str:
    """The TOML text of a profile. comments: lines for its top, without the sign."""
    sources = {
        text: f"source-{number}"
        for number, text in enumerate(dict.fromkeys(_sources(profile)), start=1)
    }
    lines = [*(f"# {comment}" for comment in comments), f"schema = {SCHEMA}"]
    lines += _table("", _items(profile), sources)
    listing = [f"{key} = {_text(text)}" for text, key in sources.items()]
    return "\n".join([*lines, "", "[sources]", *listing]) + "\n"


def _items(value: Any) -> dict[str, Any]:
    """What a dataclass or mapping holds, without what is empty."""
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Any]", value))
    found = {each.name: getattr(value, each.name) for each in fields(value)}
    return {key: held for key, held in found.items() if held is not None and held not in ((), {})}


def _table(path: str, items: Mapping[str, Any], sources: Mapping[str, str]) -> list[str]:
    """Plain values, then tables: TOML takes what follows a table's head for its own."""
    plain: list[str] = []
    tables: list[str] = []
    for key, value in items.items():
        inner = f"{path}.{key}" if path else key
        if isinstance(value, Figure):
            plain.append(f"{key} = {_figure(value, sources)}")
        elif isinstance(value, str):
            plain.append(f"{key} = {_text(value)}")
        elif isinstance(value, tuple):
            rows = cast("Sequence[Any]", value)
            if isinstance(rows[0], str):
                plain.append(f"{key} = [{', '.join(map(_text, rows))}]")
            else:
                for row in rows:
                    tables += ["", f"[[{inner}]]", *_table(inner, _items(row), sources)]
        else:
            tables += ["", f"[{inner}]", *_table(inner, _items(value), sources)]
    return plain + tables


def _figure(figure: Figure, sources: Mapping[str, str]) -> str:
    source = "" if figure.origin == ESTIMATE else f"source = {_text(sources[figure.source])}, "
    return (
        f'{{ value = {figure.value!r}, origin = "{figure.origin}", {source}'
        f"says = {_text(figure.says)} }}"
    )


def _text(text: str) -> str:
    """A basic string of TOML: what JSON escapes is escaped alike."""
    return json.dumps(text, ensure_ascii=False)


def _sources(value: object) -> Iterator[str]:
    if isinstance(value, Figure):
        if value.origin != ESTIMATE:
            yield value.source
    elif isinstance(value, Mapping):
        for each in cast("Mapping[str, object]", value).values():
            yield from _sources(each)
    elif isinstance(value, tuple):
        for each in cast("tuple[object, ...]", value):
            yield from _sources(each)
    elif is_dataclass(value):
        for each in fields(value):
            yield from _sources(getattr(value, each.name))
