"""Find a runtime by name: the ones built in, and those other packages register.

A package adds a runtime with an entry point in the group ``advisor.targets`` whose object is a
``Target``. The built-in ones are registered the same way, and listed here as well so that a
checkout that was never installed works.
"""

from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Final, cast

from advisor.errors import MissingDependencyError, MissingEmitterError, UsageError
from advisor.targets.base import Target
from advisor.targets.capability import Capability, capability_names, load_capability

GROUP: Final = "advisor.targets"

BUILT_IN: Final = {
    "coreai": "advisor.targets.coreai:TARGET",
    "coreml": "advisor.targets.coreml:TARGET",
    "onnxruntime": "advisor.targets.onnxruntime:TARGET",
    "tensorrt": "advisor.targets.tensorrt:TARGET",
    "tflite": "advisor.targets.tflite:TARGET",
}
"""Runtimes of this package with an emitter, and the object that is their ``Target``."""

_PARTS: Final = ("capability", "emit", "load", "read_back", "run")


def runtime_names() -> tuple[str, ...]:
    """Every runtime that can be planned for, sorted; not all of them can be compiled for."""
    return tuple(sorted({*capability_names(), *_registered()}))


def target_named(name: str) -> Target:
    """The target that writes, reads and runs the files of a runtime.

    Raises:
        UsageError: no such runtime, or what is registered under the name is not a target.
        MissingEmitterError: the runtime can be planned for, but nothing here writes its files.
        MissingDependencyError: a package that the target imports is not installed.
    """
    registered = _registered()
    if name in registered:
        return _load(registered[name])
    if name not in capability_names():
        raise _unknown(name)
    able = ", ".join(sorted(registered))
    raise MissingEmitterError(
        f"{load_capability(name).title} can be planned for, but nothing here writes its files "
        f"yet; runtimes that can be compiled for: {able}. Compile for one of them, or install a "
        f"package that registers {name!r} in the entry-point group {GROUP!r}"
    )


def capability_named(name: str) -> Capability:
    """What a runtime supports; of a built-in one without importing its packages.

    Raises:
        UsageError: no such runtime.
        MissingDependencyError: a package that another package's target imports is missing.
    """
    registered = _registered()
    if name in registered and name not in BUILT_IN:
        return _load(registered[name]).capability
    if name in capability_names():
        return load_capability(name)
    raise _unknown(name)


def _registered() -> dict[str, EntryPoint]:
    """Entry points by runtime; a built-in runtime is never replaced by another package's."""
    found = {name: EntryPoint(name, value, GROUP) for name, value in BUILT_IN.items()}
    for entry in entry_points(group=GROUP):
        if entry.name in BUILT_IN:
            continue
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise UsageError(
                f"two packages register the runtime {entry.name!r}: {other.value} and "
                f"{entry.value}; uninstall one of them"
            )
    return found


def _load(entry: EntryPoint) -> Target:
    try:
        target: object = import_module(entry.module)
    except ImportError as error:
        package = (error.name or entry.module).partition(".")[0]
        if package == "advisor":  # a fault of this package, which no installation would mend
            raise
        install = f"quantadvisor[{entry.name}]" if entry.name in BUILT_IN else package
        raise MissingDependencyError(
            f"the runtime {entry.name!r} needs the package {package!r}, which cannot be imported "
            f"({error}); run: pip install '{install}'"
        ) from error
    for attribute in filter(None, entry.attr.split(".")):
        target = getattr(target, attribute, None)
    missing = [part for part in _PARTS if not hasattr(target, part)]
    if missing:
        raise UsageError(
            f"{entry.value}, registered as the runtime {entry.name!r}, is not a target: it has no "
            f"{', '.join(missing)}; see advisor.targets.base.Target"
        )
    return cast("Target", target)


def _unknown(name: str) -> UsageError:
    names = runtime_names()
    close = get_close_matches(name, names)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return UsageError(f"unknown runtime {name!r}{hint}; known runtimes: {', '.join(names)}")
