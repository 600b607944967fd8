"""Say where in the user's model something failed: module path, source file and line."""

from __future__ import annotations

import linecache
import re
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import torch
from torch.fx import Node

from advisor.passes.fx import innermost_module

_FOREIGN: Final = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
"""Folders whose lines are not the user's: torch's and this one."""

_FRAME: Final = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def explain(error: BaseException, model: torch.nn.Module) -> str:
    """One clause: which module, which line, and the first line of the cause.

    Walks the traceback (and the causes) for the innermost frame whose first argument is a module
    of ``model``, and for the innermost such frame in a file that is not torch's.
    """
    untyped: Any = model  # torch does not annotate named_modules
    names: dict[int, str] = {id(module): name for name, module in untyped.named_modules()}
    place = ""
    for cause in _causes(error):
        place = _place(cause.__traceback__, names, type(model).__name__) or place
    lines = str(error).strip().splitlines()
    summary = lines[0] if lines else type(error).__name__
    return f"{place}: {summary}" if place else summary


def locate(node: Node) -> str:
    """Module path and source line of a captured node, as far as torch.export recorded them."""
    path, _ = innermost_module(node)
    frames = [
        (match["file"], int(match["line"]))
        for match in _FRAME.finditer(str(node.meta.get("stack_trace") or ""))
        if not match["file"].startswith((*_FOREIGN, "<"))
    ]
    module = f"module {path!r}" if path else "the model's own forward"
    return f"{module} at {_show(*frames[-1])}" if frames else module


def _causes(error: BaseException | None) -> list[BaseException]:
    """Outermost first, so that the innermost place found wins."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _place(traceback: TracebackType | None, names: dict[int, str], root: str) -> str:
    module, line = "", ""
    while traceback is not None:
        frame, number = traceback.tb_frame, traceback.tb_lineno
        arguments = frame.f_code.co_varnames[:1]  # the method's first, whatever it is called
        owner: Any = frame.f_locals.get(arguments[0]) if arguments else None
        filename = frame.f_code.co_filename
        is_ours = filename.startswith(_FOREIGN[1])
        if id(owner) in names and not is_ours:
            module = names[id(owner)] or root
            if not filename.startswith(_FOREIGN):
                line = _show(filename, number)
        traceback = traceback.tb_next
    if not module:
        return ""
    return f"module {module!r} at {line}" if line else f"module {module!r}"


def _show(filename: str, number: int) -> str:
    code = linecache.getline(filename, number).strip()
    return f"{Path(filename).name}:{number}" + (f" ({code})" if code else "")
