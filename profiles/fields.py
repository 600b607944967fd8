"""What the fields of the schema's dataclasses may hold, read from their annotations."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from advisor.profiles.limits import Inherited, Keys, OneOf, Pattern, Range

Shape = Literal["one", "list", "table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One field.

    shape: one value, a list, or a table with free keys. type: the class of the value, or of every
    item; ``str`` for words too. words: the strings it may be, none given: any. range, pattern and
    keys: None where nothing is asked. inherited: may come from the profile that this one is like.
    required: has no default.
    """

    shape: Shape
    type: type
    words: tuple[str, ...]
    range: Range | None
    pattern: Pattern | None
    keys: Keys | None
    inherited: bool
    required: bool


@cache
def specs_of(kind: type) -> Mapping[str, Spec]:
    """Every field of the dataclass ``kind``, in order."""
    hints = get_type_hints(kind, include_extras=True)
    return types.MappingProxyType(
        {
            each.name: _spec(
                hints[each.name],
                required=each.default is MISSING and each.default_factory is MISSING,
            )
            for each in fields(kind)
        }
    )


def _spec(hint: Any, *, required: bool) -> Spec:
    marks: list[object] = []
    shape: Shape = "one"
    while True:
        origin, arguments = get_origin(hint), get_args(hint)
        if origin is Annotated:
            hint = arguments[0]
            marks += arguments[1:]
        elif origin in (Union, types.UnionType):  # "or None", which is how absence is said
            (hint,) = (each for each in arguments if each is not type(None))
        elif origin is tuple:
            hint, shape = arguments[0], "list"
        elif origin is Mapping:
            hint, shape = arguments[1], "table"
        elif origin is Literal:
            hint = str
            marks.append(OneOf(arguments))
        else:
            break
    return Spec(
        shape=shape,
        type=hint,
        words=next((mark.words for mark in marks if isinstance(mark, OneOf)), ()),
        range=next((mark for mark in marks if isinstance(mark, Range)), None),
        pattern=next((mark for mark in marks if isinstance(mark, Pattern)), None),
        keys=next((mark for mark in marks if isinstance(mark, Keys)), None),
        inherited=any(isinstance(mark, Inherited) for mark in marks),
        required=required,
    )
