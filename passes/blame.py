"""Say where in the user's model something failed: module path, source file and line."""

from __future__ import annotations

import linecache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch


def explain(error: BaseException, model: torch.nn.Module) -> str:
    """One clause: which module, which line, and the first line of the cause.

    Walks the traceback (and the causes) for the innermost frame whose ``self`` is a module of
    ``model`` and whose file does not belong to torch.
    """
    names = {id(module): name for name, module in model.named_modules()}
    place = ""
    for cause in _causes(error):
        place = _place(cause.__traceback__, names, type(model).__name__) or place
    message = str(error).strip().splitlines()
    summary = message[0] if message else type(error).__name__
    return f"{place}: {summary}" if place else summary


def _causes(error: BaseException | None) -> list[BaseException]:
    """Outermost first, so that the innermost place found wins."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain[::-1]


def _place(traceback: TracebackType | None, names: dict[int, str], root: str) -> str:
    place = ""
    own = str(Path(torch.__file__).parent)
    while traceback is not None:
        frame, line = traceback.tb_frame, traceback.tb_lineno
        arguments = frame.f_code.co_varnames[:1]  # the method's first, whatever it is called
        owner: Any = frame.f_locals.get(arguments[0]) if arguments else None
        filename = frame.f_code.co_filename
        if id(owner) in names and not filename.startswith(own):
            module = names[id(owner)] or root
            code = linecache.getline(filename, line).strip()
            shown = f"{Path(filename).name}:{line}"
            place = f"module {module!r} at {shown}" + (f" ({code})" if code else "")
        traceback = traceback.tb_next
    return place
