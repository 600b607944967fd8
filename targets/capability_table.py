"""One table of a ``<runtime>.toml``: fields by kind, and errors with the path of the field."""

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from math import inf
from typing import Final, NoReturn, TypeVar, cast

from advisor.errors import UsageError

T = TypeVar("T")

_MISSING: Final = object()
_KINDS: Final[dict[type[object], str]] = {
    str: "text",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


class CapabilityTable:
    """One TOML table that remembers its path and which fields were read."""

    def __init__(self, values: dict[str, object], *, file: str, path: str = "") -> None:
        self._values = values
        self._file = file
        self._path = path
        self._read: set[str] = set()

    def fail(self, field: str, problem: str) -> NoReturn:
        """Raise UsageError with the path of the field."""
        path = f"{self._path}.{field}" if self._path else field
        raise UsageError(f"{self._file}.toml: {path}: {problem}")

    def get(self, field: str, kind: type[T], *, default: object = _MISSING) -> T:
        """A field of that kind; without a default it must be there."""
        self._read.add(field)
        value = self._values.get(field, default)
        if value is _MISSING:
            self.fail(field, "missing field")
        if not isinstance(value, kind):
            self.fail(field, f"expected {_KINDS[kind]}, found {value!r}")
        return value

    def number(self, field: str, *, default: float | None = None) -> float:
        """A number of at least 0; whole ones may be written without a point."""
        self._read.add(field)
        value = self._values.get(field, default)
        if value is None:
            self.fail(field, "missing field")
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < inf:
            self.fail(field, f"expected a number of at least 0, found {value!r}")
        return float(value)

    def whole(self, field: str, *, default: int) -> int:
        """A whole number of at least 1."""
        value = self.number(field, default=default)
        if value < 1 or value != int(value):
            self.fail(field, f"expected a whole number of at least 1, found {value!r}")
        return int(value)

    def text(self, field: str, *, default: object = _MISSING) -> str:
        """Text that is not empty, unless it is the default."""
        value = self.get(field, str, default=default)
        if default is _MISSING and not value.strip():
            self.fail(field, "must not be empty")
        return value

    def texts(self, field: str, *, default: Sequence[str] | None = None) -> tuple[str, ...]:
        """A list of texts."""
        missing: object = _MISSING if default is None else list(default)
        values = cast("list[object]", self.get(field, list, default=missing))
        for position, value in enumerate(values):
            if not isinstance(value, str):
                self.fail(f"{field}[{position}]", f"expected text, found {value!r}")
        return tuple(cast("list[str]", values))

    def choice(self, field: str, known: Collection[str], *, default: object = _MISSING) -> str:
        """One of the known texts."""
        value = self.text(field, default=default)
        if value not in known:
            self.fail(field, f"{value!r} is not one of {', '.join(sorted(known))}")
        return value

    def names(
        self,
        field: str,
        known: Collection[str],
        kind: str,
        *,
        default: Sequence[str] | None = None,
    ) -> tuple[str, ...]:
        """A list of names, each known."""
        values = self.texts(field, default=default)
        for position, value in enumerate(values):
            if value not in known:
                close = get_close_matches(value, known)
                hint = f"did you mean {' or '.join(close)}?" if close else ""
                known_list = f"known: {', '.join(dict.fromkeys(known))}"
                self.fail(f"{field}[{position}]", f"unknown {kind} {value!r}; {hint or known_list}")
            if value in values[:position]:
                self.fail(f"{field}[{position}]", f"{value!r} is listed twice")
        if default is None and kind in {"scheme", "operator"} and not values:
            self.fail(field, "must not be empty")
        return values

    def optional_table(self, field: str) -> "CapabilityTable | None":
        """A table inside this one, if it is there."""
        if field not in self._values:
            return None
        values = cast("dict[str, object]", self.get(field, dict))
        return CapabilityTable(values, file=self._file, path=field)

    def tables(self, field: str, *, optional: bool = False) -> list["CapabilityTable"]:
        """A list of tables, each with its position in its path."""
        values = cast("list[object]", self.get(field, list, default=[] if optional else _MISSING))
        tables: list[CapabilityTable] = []
        for position, value in enumerate(values):
            path = f"{self._path}.{field}[{position}]" if self._path else f"{field}[{position}]"
            if not isinstance(value, dict):
                self.fail(path, f"expected a table, found {value!r}")
            table = cast("dict[str, object]", value)
            tables.append(CapabilityTable(table, file=self._file, path=path))
        return tables

    def finish(self) -> None:
        """Every field that nothing read is an error: a typo must not be ignored."""
        for field in self._values:
            if field not in self._read:
                close = get_close_matches(field, self._read)
                hint = f"did you mean {close[0]}?" if close else ""
                self.fail(
                    field, f"unknown field; {hint or 'known: ' + ', '.join(sorted(self._read))}"
                )
