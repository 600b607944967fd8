"""The JSON Schema (draft 2020-12) of profile files, for editors and other validators.

It follows from the annotations of ``advisor.profiles.schema``. Checks across fields, such as a
published number against what it quotes, are ``advisor.profiles.consistency``'s alone.
"""

from dataclasses import is_dataclass
from typing import Any, Final

from advisor.profiles.fields import Spec, specs_of
from advisor.profiles.limits import RANGES, Range
from advisor.profiles.schema import FIGURE_ORIGINS, SCHEMA, Figure, Profile

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
TEXT: Final = {"type": "string", "pattern": r"\S"}
TEXTS: Final = {"type": "object", "additionalProperties": TEXT}


def json_schema() -> dict[str, Any]:
    """The schema as JSON-ready data."""
    schema = _object(Profile)
    properties = {
        "schema": {"const": SCHEMA},
        "like": TEXT | {"description": "Name of a profile to take what is missing here from."},
        "sources": TEXTS | {"description": "Title and address of every document, by its key."},
        **schema["properties"],
    }
    return {
        "$schema": DIALECT,
        "title": "quantadvisor hardware profile",
        **schema,
        "properties": properties,
        "required": ["schema", *schema["required"]],
        "if": {"required": ["like"]},
        "else": _requirements(Profile),
        "$defs": {_key(limits): _figure(limits) for limits in RANGES},
    }


def _object(kind: type) -> dict[str, Any]:
    specs = specs_of(kind)
    return {
        "type": "object",
        "properties": {name: _field(spec) for name, spec in specs.items()},
        "required": [name for name, spec in specs.items() if spec.required and not spec.inherited],
        "additionalProperties": False,
    }


def _field(spec: Spec) -> dict[str, Any]:
    item = _item(spec)
    if spec.shape == "one":
        return item
    if spec.shape == "list":
        return {"type": "array", "items": item} | ({"minItems": 1} if spec.required else {})
    if spec.keys is None:
        return {"type": "object", "additionalProperties": item}
    return {
        "type": "object",
        "properties": dict.fromkeys(spec.keys.names, item),
        "additionalProperties": False,
    }


def _item(spec: Spec) -> dict[str, Any]:
    if spec.range is not None and spec.type is Figure:
        return {"$ref": f"#/$defs/{_key(spec.range)}"}
    if is_dataclass(spec.type):
        return _object(spec.type)
    if spec.words:
        return {"enum": list(spec.words)}
    if spec.pattern is not None:
        pattern = spec.pattern
        return {"type": "string", "pattern": f"^(?:{pattern.regex})$", "description": pattern.hint}
    return TEXT


def _key(limits: Range) -> str:
    return limits.unit.replace(" ", "-")


def _figure(limits: Range) -> dict[str, Any]:
    value: dict[str, Any] = {
        "type": "number",
        "minimum": limits.low,
        "maximum": limits.high,
        "description": f"{limits.unit}; {limits.hint}",
    }
    return {
        "type": "object",
        "properties": {
            "value": value | ({"multipleOf": 1} if limits.whole else {}),
            "origin": {"enum": list(FIGURE_ORIGINS)},
            "source": TEXT | {"description": "A key of [sources]."},
            "says": TEXT,
        },
        "required": ["value", "origin", "says"],
        "additionalProperties": False,
        "if": {"properties": {"origin": {"const": "estimate"}}},
        "then": {"properties": {"source": False}},
        "else": {"required": ["source"]},
    }


def _requirements(kind: type) -> dict[str, Any]:
    """What a file that is like no other one has to state, besides what every file must."""
    specs = specs_of(kind)
    inside = {name: _inside(spec) for name, spec in specs.items()}
    return {
        "required": [name for name, spec in specs.items() if spec.required and spec.inherited],
        "properties": {name: found for name, found in inside.items() if found},
    }


def _inside(spec: Spec) -> dict[str, Any]:
    if spec.keys is not None and spec.keys.required:
        return {"required": list(spec.keys.names)}
    if spec.shape == "one" and is_dataclass(spec.type) and spec.type is not Figure:
        found = _requirements(spec.type)
        return found if found["required"] else {}
    return {}
