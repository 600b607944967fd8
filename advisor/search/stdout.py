"""Keep a native library's stray lines out of standard output, which is the user's results.

HiGHS 1.11 and later print a diagnostic with plain ``printf`` whatever its options say
(https://github.com/jump-dev/HiGHS.jl/issues/312), which would break ``--json`` output.
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

logger = logging.getLogger("advisor")

_STDOUT = 1
_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def withheld_lines(prefix: str) -> Generator[None]:
    """While open, lines on file descriptor 1 that start with ``prefix`` go to the log instead.

    Everything else that is written meanwhile reaches standard output when the block ends.
    """
    with _ONE_AT_A_TIME:
        _flush()
        try:
            saved = os.dup(_STDOUT)
        except OSError:  # no standard output, as in a windowed program: nothing to protect
            yield
            return
        with tempfile.TemporaryFile() as held:
            os.dup2(held.fileno(), _STDOUT)
            try:
                yield
            finally:
                _flush()
                os.dup2(saved, _STDOUT)
                os.close(saved)
                held.seek(0)
                _pass_on(held.read(), prefix.encode())


def _pass_on(written: bytes, prefix: bytes) -> None:
    for line in written.splitlines(keepends=True):
        if line.startswith(prefix):
            logger.debug("solver: %s", line.decode(errors="replace").rstrip())
        else:
            os.write(_STDOUT, line)


def _flush() -> None:
    # C's own buffer of stdout is filled by printf and must be emptied while redirected.
    if sys.stdout is not None:
        sys.stdout.flush()
    ctypes.CDLL("ucrtbase" if os.name == "nt" else None).fflush(None)
