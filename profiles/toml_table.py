"""Reading one TOML table: typed fields; errors start with the file and the field's path."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TypeVar, cast

from advisor.errors import ProfileError
from advisor.profiles.limits import Pattern, Range
from advisor.profiles.schema import FIGURE_ORIGINS, Figure, FigureOrigin

Word = TypeVar("Word", bound=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One TOML table with its path, so that an error can say where."""

    values: Mapping[str, object]
    file: str
    path: str = ""

    def fail(self, key: str, problem: str) -> ProfileError:
        """The error for field ``key`` of this table."""
        where = ".".join(part for part in (self.path, key) if part)
        return ProfileError(f"{self.file}: {where}: {problem}")

    def allow(self, known: Iterable[str]) -> None:
        """Refuse fields that are not in ``known``."""
        names = tuple(known)
        for key in self.values:
            if key not in names:
                near = get_close_matches(key, names, n=1)
                guess = f"did you mean {near[0]}? " if near else ""
                raise self.fail(key, f"unknown field; {guess}it takes {', '.join(names)}")

    def need(self, key: str) -> object:
        """The value of a field that must be there."""
        if key not in self.values:
            raise self.fail(key, "missing; every profile needs it")
        return self.values[key]

    def text(self, key: str) -> str:
        """A non-empty string."""
        value = self.need(key)
        if not isinstance(value, str) or not value.strip():
            raise self.fail(key, f"expected a non-empty string, got {value!r}")
        return value

    def matching(self, key: str, pattern: Pattern) -> str:
        """A string that matches ``pattern`` in full."""
        value = self.text(key)
        if not re.fullmatch(pattern.regex, value):
            raise self.fail(key, f"{value!r} cannot be taken: {pattern.hint}")
        return value

    def choice(self, key: str, options: tuple[Word, ...]) -> Word:
        """A string out of ``options``."""
        value = self.text(key)
        for option in options:
            if option == value:
                return option
        raise self.fail(key, f"{value!r} is not one of {', '.join(options)}")

    def texts(self, key: str, words: tuple[str, ...] = ()) -> tuple[str, ...]:
        """A list of non-empty strings, each out of ``words`` where those are given."""
        value = self.need(key)
        if not isinstance(value, list):
            raise self.fail(key, f"expected a list of strings, got {value!r}")
        items = cast("list[object]", value)
        rows = replace(self, values={f"{key}[{n}]": item for n, item in enumerate(items)})
        return tuple(rows.choice(row, words) if words else rows.text(row) for row in rows.values)

    def table(self, key: str) -> "Table":
        """A table inside this one."""
        value = self.need(key)
        if not isinstance(value, dict):
            raise self.fail(key, f"expected a table, got {value!r}")
        path = ".".join(part for part in (self.path, key) if part)
        return Table(values=cast("dict[str, object]", value), file=self.file, path=path)

    def tables(self, key: str) -> tuple["Table", ...]:
        """A non-empty array of tables; their paths are ``key[0]``, ``key[1]`` and so on."""
        value = self.need(key)
        if not isinstance(value, list) or not value:
            raise self.fail(key, f"expected at least one [[{key}]] table, got {value!r}")
        items = cast("list[object]", value)
        rows = replace(self, values={f"{key}[{n}]": item for n, item in enumerate(items)})
        return tuple(rows.table(name) for name in rows.values)

    def figure(self, key: str, sources: Mapping[str, str], limits: Range) -> Figure:
        """A number with origin and source, inside ``limits``."""
        table = self.table(key)
        table.allow(("value", "origin", "source", "says"))
        origin: FigureOrigin = table.choice("origin", FIGURE_ORIGINS)
        says = table.text("says")
        if origin == "estimate":
            # An estimate has no document behind it; naming one would lend it false authority.
            if "source" in table.values:
                raise table.fail("source", "an estimate has no source; give the reason in says")
            source = "estimate"
        else:
            key_of_source = table.text("source")
            if key_of_source not in sources:
                raise table.fail(
                    "source",
                    f"{key_of_source!r} is not defined under [sources]; "
                    f"defined: {', '.join(sources) or 'none'}",
                )
            source = sources[key_of_source]
        value = table.number("value", limits)
        return Figure(value=value, origin=origin, source=source, says=says)

    def number(self, key: str, limits: Range) -> float:
        """A finite number inside ``limits``."""
        value = self.need(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(key, f"expected a number of {limits.unit}, got {value!r}")
        if not math.isfinite(value):
            raise self.fail(key, f"expected a finite number of {limits.unit}, got {value!r}")
        if not limits.low <= value <= limits.high:
            raise self.fail(
                key,
                f"{value!r} {limits.unit} is outside {limits.low:g} to {limits.high:g}; "
                f"{limits.hint}",
            )
        if limits.whole and value != int(value):
            raise self.fail(key, f"expected a whole number of {limits.unit}, got {value!r}")
        return float(value)
