"""From the text of a profile to a ``Profile``: every mistake is reported with its field's path."""

import tomllib
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from advisor.errors import ProfileError
from advisor.profiles.consistency import check_profile
from advisor.profiles.read import read
from advisor.profiles.schema import SCHEMA, Figure, Profile
from advisor.profiles.toml_table import Table

FILE_FIELDS: Final = ("schema", "like", "sources")
"""Fields of a file that end up in no field of the profile."""


def parse_profile(text: str, file: str, find: Callable[[str], Profile] | None = None) -> Profile:
    """The profile that ``text`` (TOML) describes; ``file`` names it in errors.

    find: gives the profile of a name, for a file that says what it is ``like``. None: it may not
    say so.

    Raises:
        ProfileError: not TOML, or a field is missing, unknown, of the wrong type, out of range or
            inconsistent with another one. The message starts with the file and the field's path.
    """
    try:
        root = Table(values=tomllib.loads(text), file=file)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{file}: not a TOML file: {error}") from error
    schema = root.need("schema")
    if schema != SCHEMA or isinstance(schema, bool):
        raise root.fail("schema", f"this version reads schema {SCHEMA}, the file says {schema!r}")
    base = _base(root, find)
    profile = read(Profile, root, _sources(root), base, besides=FILE_FIELDS)
    if base is not None:
        units = {entry.unit for entry in profile.compute}
        named = {*units, *(root.table("by_unit").values if "by_unit" in root.values else ())}
        kept = {unit: own for unit, own in profile.by_unit.items() if unit in named}
        profile = replace(profile, by_unit=kept)
    check_profile(profile, root)
    return profile


def _base(root: Table, find: Callable[[str], Profile] | None) -> Profile | None:
    if "like" not in root.values:
        return None
    name = root.text("like")
    if find is None:
        raise root.fail("like", f"{name!r} cannot be looked up here; state everything")
    try:
        found = find(name)
    except ProfileError as error:
        raise root.fail("like", str(error)) from error
    overhead = found.overhead
    product = overhead.product_s
    return replace(
        found,
        memory=replace(found.memory, fraction=_assumed(found.memory.fraction, found.title)),
        efficiency={family: _assumed(f, found.title) for family, f in found.efficiency.items()},
        overhead=replace(
            overhead,
            launch_s=_assumed(overhead.launch_s, found.title),
            product_s=None if product is None else _assumed(product, found.title),
        ),
    )


def _assumed(figure: Figure, title: str) -> Figure:
    """What is known of one device is an estimate for another that is like it."""
    if figure.origin == "estimate":
        return figure
    says = f"as of {title}: {figure.says} ({figure.source})"
    return replace(figure, origin="estimate", source="estimate", says=says)


def _sources(root: Table) -> dict[str, str]:
    if "sources" not in root.values:
        return {}
    table = root.table("sources")
    return {key: table.text(key) for key in table.values}
