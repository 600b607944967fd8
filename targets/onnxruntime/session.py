"""ONNX Runtime sessions with the settings that the artifact was checked under."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol

from advisor.errors import PlanError
from advisor.targets.packages import require_packages

PROVIDER: Final = "CPUExecutionProvider"
EXTERNAL: Final = {
    "session.optimized_model_external_initializers_file_name": "optimized.data",
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}
"""Settings to write an optimised graph of any size: protobuf ends at 2 GiB."""

_ERRORS_ONLY: Final = 3


class Session(Protocol):
    """What is used here of onnxruntime.InferenceSession, which comes without types."""

    def run(self, output_names: list[str] | None, input_feed: dict[str, Any]) -> list[Any]:
        """Outputs of these names (None: all) for arrays by input name."""
        ...

    def end_profiling(self) -> str:
        """Stop the profiler that the session was opened with; the path of what it wrote."""
        ...


def require(*names: str) -> None:
    """Check that packages are importable.

    Raises:
        MissingDependencyError: names them and the command that installs them.
    """
    require_packages("ONNX Runtime", "onnxruntime", names)


def open_session(
    model: Path,
    entries: Mapping[str, str],
    *,
    threads: int | None = None,
    dimensions: Mapping[str, int] | None = None,
    optimized: Path | None = None,
    profile: Path | None = None,
    as_written: bool = False,
) -> Session:
    """A session on the CPU.

    entries: session configuration, as in session.json. threads: of one operator; None leaves the
    choice to ONNX Runtime. dimensions: sizes to fix, by the name of a dynamic dimension: what
    follows from them is then computed once. optimized: where to write the graph that will really
    run. profile: prefix of the file with the time of every node, for all runs until
    ``end_profiling``. as_written: run the file's own operators, none fused or moved.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        PlanError: the file, or the weights beside it, is missing, damaged or not understood.
    """
    onnxruntime = _onnxruntime()
    options: Any = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    for name, size in (dimensions or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        session: Session = onnxruntime.InferenceSession(str(model), options, providers=[PROVIDER])
    except _load_errors() as error:
        raise PlanError(
            f"ONNX Runtime {onnxruntime.__version__} cannot open {model} ({_cause(error)}); "
            "it and the files beside it must stay as they were written: compile the plan again"
        ) from error
    _return_freed()
    return session


def _return_freed() -> None:
    """Give the system back what opening a model has freed; glibc would keep it for later.

    Opening copies every weight into the layout of its kernel. Without this a process may stay at
    twice to four times the weights; see docs/onnxruntime.md.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):  # glibc only
            library.malloc_trim(0)


def runtime_version() -> str:
    """Name and version of the runtime, such as "onnxruntime 1.31.1"."""
    return f"onnxruntime {_onnxruntime().__version__}"


def _onnxruntime() -> Any:
    require("onnxruntime")
    return import_module("onnxruntime")


def _cause(error: Exception) -> str:
    """The end of a message that begins with the places in C++ it went through."""
    return str(error).rpartition(" : ")[2].strip()


def _load_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises for a file it cannot open; they have no common base of their own."""
    state: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    return (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoSuchFile,
        state.NotImplemented,
    )
