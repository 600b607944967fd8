"""From tables to the dataclasses of the schema, as their annotations say."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar, cast

from advisor.profiles.fields import Spec, specs_of
from advisor.profiles.schema import Figure
from advisor.profiles.toml_table import Table

Made = TypeVar("Made")


def read(
    kind: type[Made],
    table: Table,
    sources: Mapping[str, str],
    base: Made | None = None,
    besides: tuple[str, ...] = (),
) -> Made:
    """The ``kind`` that ``table`` holds.

    sources: titles and addresses by the key that figures cite them by. base: where inherited
    fields that the table lacks are taken from. besides: keys of the table that are no fields.

    Raises:
        ProfileError: a field is missing, unknown, of the wrong type or out of range.
    """
    owner: type = kind
    specs = specs_of(owner)
    table.allow((*besides, *specs))
    values: dict[str, object] = {}
    for name, spec in specs.items():
        known = getattr(base, name, None)
        if name in table.values:
            values[name] = _field(spec, table, name, sources, known)
        elif spec.inherited and known is not None:
            values[name] = known
        elif spec.required:
            table.need(name)
    return kind(**values)


def _field(spec: Spec, table: Table, key: str, sources: Mapping[str, str], known: object) -> object:
    if spec.shape == "table":
        return _table(spec, table.table(key), sources, known)
    if spec.shape == "one":
        return _item(spec, table, key, sources, known)
    if is_dataclass(spec.type):
        return tuple(read(spec.type, each, sources) for each in table.tables(key))
    return table.texts(key, spec.words)


def _table(
    spec: Spec, table: Table, sources: Mapping[str, str], known: object
) -> dict[str, object]:
    before: Mapping[str, object] = {}
    if spec.inherited and known is not None:
        before = cast("Mapping[str, object]", known)
    keys = spec.keys.names if spec.keys is not None else tuple(table.values)
    table.allow(keys)
    found: dict[str, object] = {}
    for key in keys:
        if key in table.values:
            found[key] = _item(spec, table, key, sources, before.get(key))
        elif key in before:
            found[key] = before[key]
        elif spec.keys is not None and spec.keys.required:
            table.need(key)
    return found


def _item(spec: Spec, table: Table, key: str, sources: Mapping[str, str], known: object) -> object:
    if spec.type is Figure:
        assert spec.range is not None, f"{key}: the schema gives no range"
        return table.figure(key, sources, spec.range)
    if is_dataclass(spec.type):
        kind: type[Any] = spec.type
        return read(kind, table.table(key), sources, known)
    if spec.words:
        return table.choice(key, spec.words)
    return table.text(key) if spec.pattern is None else table.matching(key, spec.pattern)
