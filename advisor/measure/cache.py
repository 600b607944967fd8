"""What was measured is kept: the same question on the same machine gets the same answer."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from advisor import measure, passes, targets
from advisor.atomic import write_text
from advisor.parse import FieldError, dump_record, parse_record

Record = TypeVar("Record")

logger = logging.getLogger("advisor")


def keep(
    folder: Path | None, key: Mapping[str, Any], kind: type[Record], make: Callable[[], Record]
) -> Record:
    """The record kept under ``key`` in ``folder``, else the one that ``make`` finds, then kept.

    folder: None measures anew and keeps nothing. A file that cannot be read is replaced.

    Raises:
        OutputError: the folder cannot be written.
    """
    if folder is None:
        return make()
    text = json.dumps({**key, "code": code_digest()}, sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    try:
        return parse_record(kind, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, FieldError) as error:
        logger.warning("%s is replaced: it cannot be read (%s)", path, error)
    found = make()
    write_text(path, json.dumps(dump_record(found), sort_keys=True, indent=1) + "\n")
    return found


@lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 of the code whose work is timed or that times it."""
    digest = hashlib.sha256()
    for package in (measure, passes, targets):
        folder = Path(str(package.__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
