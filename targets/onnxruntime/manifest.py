"""The files of an ONNX Runtime artifact besides artifact.json: the model and how to open it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, cast

from advisor.errors import PlanError
from advisor.targets.manifest import write_json

MODEL_FILE: Final = "model.onnx"
SESSION_FILE: Final = "session.json"

SESSION_ENTRIES: Final[dict[str, str]] = {"session.x64quantprecision": "1"}
"""Session settings that the artifact is checked and should be opened with.

Without this one, x86 processors that lack VNNI add pairs of products of 8-bit integers in 16 bits,
which overflow without a word. With it ONNX Runtime takes another kernel there, and on all other
processors nothing changes (measured, 1.31.1; include/onnxruntime/core/session/
onnxruntime_session_options_config_keys.h).
"""


def write_session_entries(folder: Path) -> None:
    """Write session.json into ``folder``."""
    write_json(folder / SESSION_FILE, SESSION_ENTRIES)


def read_session_entries(folder: Path) -> dict[str, str]:
    """Read session.json.

    Raises:
        PlanError: missing or not a table of strings.
    """
    path = folder / SESSION_FILE
    try:
        read: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{path} cannot be read ({error}); compile the plan again") from error
    entries = cast("dict[str, object]", read) if isinstance(read, dict) else {}
    strings = {name: value for name, value in entries.items() if isinstance(value, str)}
    if strings != read:
        raise PlanError(f"{path} should map setting names to strings; compile the plan again")
    return strings
