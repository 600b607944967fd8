"""Keep a native library's stray lines out of standard output and standard error.

The one is the user's results, the other progress. HiGHS 1.11 and later print a diagnostic with
plain ``printf`` whatever its options say (https://github.com/jump-dev/HiGHS.jl/issues/312), which
would break ``--json`` output; Core AI's runtime writes a line for every function that it loads.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

logger = logging.getLogger("advisor")

STDOUT: Final = 1
STDERR: Final = 2
_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def withheld_lines(prefix: str, descriptor: int = STDOUT) -> Generator[None]:
    """While open, lines on a file descriptor that start with ``prefix`` go to the log instead.

    Everything else that is written meanwhile reaches it when the block ends.
    """
    with _ONE_AT_A_TIME:
        _flush()
        try:
            saved = os.dup(descriptor)
        except OSError:  # no such stream, as in a windowed program: nothing to protect
            yield
            return
        with tempfile.TemporaryFile() as held:
            os.dup2(held.fileno(), descriptor)
            try:
                yield
            finally:
                _flush()
                os.dup2(saved, descriptor)
                os.close(saved)
                held.seek(0)
                _pass_on(held.read(), prefix.encode(), descriptor)


def _pass_on(written: bytes, prefix: bytes, descriptor: int) -> None:
    for line in written.splitlines(keepends=True):
        if line.startswith(prefix):
            logger.debug("%s", line.decode(errors="replace").rstrip())
        else:
            os.write(descriptor, line)


def _flush() -> None:
    # C's own buffers are filled by printf and must be emptied while redirected.
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    ctypes.CDLL("ucrtbase" if os.name == "nt" else None).fflush(None)
