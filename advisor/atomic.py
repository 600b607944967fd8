"""Files that appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from advisor.errors import OutputError


@contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """A temporary name beside ``path`` to write to; renamed to ``path`` when the block succeeds.

    When the block fails, the temporary file is removed and an older ``path`` is left as it was.

    Raises:
        OutputError: the folder or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        permissions = temporary.stat().st_mode
        yield temporary
        # safetensors makes its files private; a plan is meant to be shared like any other file.
        temporary.chmod(permissions)
        temporary.replace(path)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that you can write to"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` as UTF-8 with Unix line ends; returns ``path``.

    Raises:
        OutputError: the folder or the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())
    return path


def check_writable(path: Path) -> None:
    """Fail now rather than after minutes of work: can ``path`` be made? Leaves no trace.

    Raises:
        OutputError: ``path`` is a folder, or its folder (or the nearest above it that exists)
            cannot be written.
    """
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file inside it")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        with TemporaryFile(dir=nearest):
            return
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {nearest}: {error.strerror or error}; choose a folder that you "
            f"can write to"
        ) from error
