"""What differs between two plans, one line per layer or number."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from advisor.plan import Alternative, LayerDecision, Metrics, Quantity, TensorDecision
from advisor.report.units import format_quantity

if TYPE_CHECKING:
    from advisor.plan import Plan


def diff_plans(a: Plan, b: Plan) -> str:
    """One line per layer, tensor, number or setting that differs; empty when nothing does."""
    return "\n".join(_diff_fields("", a, b))


def _diff_fields(path: str, a: Any, b: Any) -> Iterator[str]:
    """Lines for two instances of one dataclass, in the order of its fields."""
    for field in dataclasses.fields(a):
        name = f"{path}.{field.name}" if path else field.name
        yield from _diff_values(name, getattr(a, field.name), getattr(b, field.name))


def _diff_values(name: str, a: Any, b: Any) -> Iterator[str]:
    if a == b:
        return
    kind = _common_type(a, b)
    if kind is Metrics:
        yield from _diff_metrics(name, a, b)
    elif dataclasses.is_dataclass(kind):
        yield from _diff_fields(name, a, b)
    elif issubclass(kind, Mapping):
        yield from _diff_entries(name, _entries(a), _entries(b))
    elif kind is tuple:
        yield from _diff_entries(name, _by_name(a), _by_name(b))
    else:
        yield f"{name}: {_show(a)} -> {_show(b)}"


def _common_type(a: object, b: object) -> type[object]:
    """The type of both, or ``object`` when they differ."""
    return type(a) if type(a) is type(b) else object


def _diff_entries(
    path: str,
    a: dict[str, object],
    b: dict[str, object],
) -> Iterator[str]:
    for key in dict.fromkeys((*a, *b)):
        name = f"{path}[{key}]"
        if key not in b:
            yield f"{name}: only in the first{_label(a[key])}"
        elif key not in a:
            yield f"{name}: only in the second{_label(b[key])}"
        elif a[key] != b[key]:
            yield _one_line(name, a[key], b[key])
    if list(a) != list(b) and set(a) == set(b) and path in ("layers", "tensors"):
        yield f"{path}: the order differs"


def _one_line(name: str, a: Any, b: Any) -> str:
    """Every changed field of one layer, tensor or alternative on a single line."""
    if not dataclasses.is_dataclass(a) or type(a) is not type(b):
        return f"{name}: {_show(a)} -> {_show(b)}"
    parts: list[str] = []
    for field in dataclasses.fields(a):
        before, after = getattr(a, field.name), getattr(b, field.name)
        if before == after:
            continue
        if isinstance(before, Metrics):
            parts += _diff_metrics("", before, after)
        elif field.name == "schemes":
            parts.append(f"{field.name}: {_count_changes(before, after)} differ")
        elif field.name == "options":
            parts.append("options differ")
        else:
            parts.append(f"{field.name} {_show(before)} -> {_show(after)}")
    return f"{name}: {', '.join(parts)}"


def _diff_metrics(path: str, a: Metrics, b: Metrics) -> Iterator[str]:
    for field in dataclasses.fields(Metrics):
        before: Quantity | None = getattr(a, field.name)
        after: Quantity | None = getattr(b, field.name)
        if before == after:
            continue
        name = f"{path}.{field.name}: " if path else f"{field.name} "
        texts = [format_quantity(field.name, each) for each in (before, after)]
        if texts[0] == texts[1]:
            # Equal at three digits, yet not equal: show every digit, or where they come from.
            texts = [_show(before), _show(after)]
        yield f"{name}{texts[0]} -> {texts[1]}"


def _entries(mapping: Mapping[Any, Any]) -> dict[str, object]:
    return dict(mapping)


def _by_name(items: tuple[Any, ...]) -> dict[str, object]:
    """Layers, tensors and alternatives by name (counted where repeated); others by position."""
    result: dict[str, object] = {}
    for index, item in enumerate(items):
        name = getattr(item, "name", None)
        key = str(index) if name is None else str(name)
        result[key if key not in result else f"{key} #{index}"] = item
    return result


def _count_changes(a: Mapping[str, object], b: Mapping[str, object]) -> int:
    return sum(a.get(key) != b.get(key) for key in {*a, *b})


def _label(item: object) -> str:
    if isinstance(item, LayerDecision):
        return f" ({item.scheme}/{item.algorithm})"
    if isinstance(item, TensorDecision | Alternative):
        return ""
    return f" ({_show(item)})"


def _show(value: object) -> str:
    if isinstance(value, Quantity):
        how = f", {value.how}" if value.how else ""
        return f"{value.value!r} ({value.origin}{how})"
    return value if isinstance(value, str) and value else repr(value)
