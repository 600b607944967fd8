"""Memory of this process, as its operating system counts it. Loads nothing heavy.

Linux: /proc/self/status, see proc_pid_status(5). macOS: ps(1) and getrusage(2).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")
_RESET_PEAK: Final = "5"


def is_known() -> bool:
    """Whether this system tells a process its memory in a way that is read here."""
    return _STATUS.exists() or sys.platform == "darwin"


def resident_bytes() -> int:
    """Bytes of this process in memory now, shared libraries included."""
    if _STATUS.exists():
        return _status("VmRSS")
    listed = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True
    )
    return int(listed.stdout) * 1024


def peak_bytes() -> int:
    """The most bytes in memory since ``restart_peak``, or since the start where it cannot."""
    if _STATUS.exists():
        # Linux adds up its counts of a process lazily, so the peak may lag behind the present.
        return max(_status("VmHWM"), _status("VmRSS"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def restart_peak() -> bool:
    """Count the peak from now on; False where the system does not allow it."""
    if not _CLEAR.exists():
        return False
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except PermissionError:  # some containers
        return False
    return True


def _status(field: str) -> int:
    """A field of /proc/self/status, which counts in units of 1024 bytes."""
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"{_STATUS} has no {field}")
