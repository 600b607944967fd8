"""Finding profiles: the ones shipped here, the ones packages register, and a user's own file."""

from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Final

from advisor.errors import ProfileError
from advisor.profiles.parse import parse_profile
from advisor.profiles.schema import Profile
from advisor.profiles.units import select_unit

ENTRY_POINT_GROUP: Final = "advisor.profiles"
"""Packages add profiles by an entry point of this group. Its object is the path of a TOML file or
of a folder of them, or a function without arguments that returns such a path."""


def load_profile(name_or_path: str | Path, runtime: str | None = None) -> Profile:
    """The profile of that name or alias (in any case), or the one in that TOML file.

    A ``Path``, and a string that ends in ".toml" or holds a path separator, is read as a file.
    "host" is this machine: measured with the kernels of ``runtime`` (None: ONNX Runtime) at the
    first use, then kept. "m2:gpu" is the GPU of the M2 alone: any of a profile's compute units can
    be picked so, behind a name or an alias. An alias may name such a unit alone, as "hexagon" does.

    Raises:
        MissingDependencyError: "host" was asked, and its runtime is not installed.
        ProfileError: no such profile or file, or the file is not a valid profile; names the field.
    """
    if isinstance(name_or_path, Path) or _looks_like_path(name_or_path):
        return _parse(Path(name_or_path))
    name, colon, unit = name_or_path.strip().lower().partition(":")
    profile = _named(name, name_or_path, runtime)
    if colon and ":" in profile.name:
        raise ProfileError(f"{name!r} is one compute unit already: {profile.name}")
    return select_unit(profile, unit) if colon else profile


def _named(wanted: str, asked: str, runtime: str | None) -> Profile:
    if wanted == "host":
        from advisor.profiles.host import DEFAULT, host_profile

        return host_profile(runtime=runtime or DEFAULT)
    files = _files()
    if wanted in files:
        return _read_named(wanted, files[wanted])
    by_alias = _aliases(list_profiles())
    if wanted in by_alias:
        return by_alias[wanted]
    known = sorted({*files, *by_alias})
    near = get_close_matches(wanted, known, n=3, cutoff=0.4)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    raise ProfileError(
        f"unknown target {asked!r}; {guess}advisor profiles lists all {len(files)} with their "
        "aliases; for hardware of your own pass the path of a profile TOML (docs/profiles.md)"
    )


def profile_names() -> tuple[str, ...]:
    """Names of all profiles that can be loaded by name, sorted; aliases not included."""
    return tuple(sorted(_files()))


def list_profiles() -> tuple[Profile, ...]:
    """All profiles that can be loaded by name, sorted by name.

    Raises:
        ProfileError: one of the files is not a valid profile.
    """
    return tuple(_read_named(name, path) for name, path in sorted(_files().items()))


def _looks_like_path(text: str) -> bool:
    return text.lower().endswith(".toml") or "/" in text or "\\" in text


def _complete(name: str, behind: tuple[str, ...] = ()) -> Profile:
    """The profile that another one is like. behind: those that led here, each like the next."""
    if name in behind:
        circle = " is like ".join((*behind[behind.index(name) :], name))
        raise ProfileError(f"{circle}: one of them must stand by itself")
    files = _files()
    if name not in files:
        near = get_close_matches(name, files, n=3, cutoff=0.4)
        guess = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ProfileError(f"no profile is named {name!r}{guess} (advisor profiles lists them)")
    return _parse(files[name], (*behind, name))


def _parse(path: Path, behind: tuple[str, ...] = ()) -> Profile:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(
            f"cannot read the profile {path}: {error}; pass the path of a TOML file, "
            "or a name that advisor profiles lists"
        ) from error
    return parse_profile(text, path.name, lambda other: _complete(other, behind))


def _read_named(name: str, path: Path) -> Profile:
    profile = _parse(path)
    if profile.name != name:
        raise ProfileError(
            f"{path.name}: name: {profile.name!r} must equal the file's name, {name!r}, "
            "which it is looked up by; rename one of them"
        )
    return profile


def _files() -> dict[str, Path]:
    """Path of every profile by name, which is the file's stem."""
    files = _shipped()
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        for path in _registered(entry):
            name = path.stem
            if name in files and files[name] != path:
                raise ProfileError(
                    f"two profiles are named {name!r}: {files[name]} and {path}; "
                    f"rename the one that the entry point {entry.name!r} registers"
                )
            files[name] = path
    return files


def _shipped() -> dict[str, Path]:
    return {path.stem: path for path in Path(__file__).parent.glob("*.toml")}


def _registered(entry: EntryPoint) -> list[Path]:
    try:
        registered: object = entry.load()
    except (ImportError, AttributeError) as error:
        raise ProfileError(
            f"entry point {entry.name!r} of {ENTRY_POINT_GROUP} cannot be loaded: {error}; "
            "repair or uninstall the package that registers it"
        ) from error
    value = registered() if callable(registered) else registered
    if not isinstance(value, str | Path):
        raise ProfileError(
            f"entry point {entry.name!r} of {ENTRY_POINT_GROUP} gives {value!r}; "
            "expected the path of a TOML file or of a folder of them"
        )
    path = Path(value)
    if path.is_dir():
        return sorted(path.glob("*.toml"))
    if not path.is_file():
        raise ProfileError(
            f"entry point {entry.name!r} of {ENTRY_POINT_GROUP} gives {path}, which does not exist"
        )
    return [path]


def _aliases(profiles: tuple[Profile, ...]) -> dict[str, Profile]:
    found: dict[str, Profile] = {}
    for profile in profiles:
        meant = dict.fromkeys((profile.name, *profile.aliases), profile)
        for alias, unit in profile.unit_aliases.items():
            meant[alias] = select_unit(profile, unit)
        for alias, one in meant.items():
            other = found.setdefault(alias.lower(), one)
            if other is not one:
                raise ProfileError(
                    f"the alias {alias!r} stands for both {other.name} and {profile.name}; "
                    "remove it from one of them"
                )
    return found
