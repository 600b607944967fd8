"""ONNX files as variants, and how they are opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import onnxruntime

from benchmarks.measure import Model

state: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")  # it has no types
RUN_ERRORS: Final = (
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NotImplemented,
    state.RuntimeException,
)
"""What ONNX Runtime raises for a model it cannot open or execute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxVariant:
    """One model file. entries: the session configuration it must be opened with.

    dimensions: sizes to fix when it is opened, by the name of a dynamic dimension. Without it a
    file with a dynamic batch computes its shapes at every run, which the peers' files need not.
    """

    name: str
    path: Path
    entries: Mapping[str, str] = field(default_factory=dict[str, str])
    dimensions: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def size_bytes(self) -> int:
        """Bytes on disk of the model and the weights beside it, graph included."""
        return sum(file.stat().st_size for file in self.path.parent.glob(f"{self.path.name}*"))

    @property
    def digest(self) -> str:
        """SHA-256 over the model file, the weights beside it, and how it is opened."""
        opened = [sorted(self.entries.items()), sorted(self.dimensions.items())]
        digest = sha256(repr(opened).encode())
        for file in sorted(self.path.parent.glob(f"{self.path.name}*")):
            digest.update(file.read_bytes())
        return digest.hexdigest()

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What ONNX Runtime raises for a model it cannot open or execute."""
        return RUN_ERRORS

    def open(self, threads: int) -> Model:
        """A session on the CPU with one inter-op and ``threads`` intra-op threads."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        for key, value in self.entries.items():
            options.add_session_config_entry(key, value)
        for name, size in self.dimensions.items():
            options.add_free_dimension_override_by_name(name, size)
        session = onnxruntime.InferenceSession(
            str(self.path), options, providers=["CPUExecutionProvider"]
        )
        run: Model = partial(session.run, None)
        return run

    def describe(self) -> dict[str, Any]:
        """Nothing more is known of an ONNX file."""
        return {}
