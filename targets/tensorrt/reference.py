"""Run a file's operators one by one on the CPU, to have its numbers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advisor.targets.onnxruntime.onnxfile import save_model
from advisor.targets.onnxruntime.session import Session, open_session, runtime_version
from advisor.targets.tensorrt.portable import make_portable

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """model: in operators that ONNX Runtime has. executed_by: runtime and version."""

    model: ir.Model
    session: Session
    executed_by: str

    def run(self, names: Sequence[str], arrays: Mapping[str, Array]) -> list[Array]:
        """The outputs of these names for arrays by input name."""
        return [np.asarray(found) for found in self.session.run(list(names), dict(arrays))]


def open_reference(model: ir.Model) -> Reference:
    """The model, ready to run.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        PlanError: ONNX Runtime does not understand the file.
    """
    portable = make_portable(model)
    with tempfile.TemporaryDirectory(prefix="advisor-") as folder:
        path = Path(folder) / "portable.onnx"
        save_model(portable, path, external="portable.onnx.data")
        session = open_session(path, {}, as_written=True)
    return Reference(
        model=portable,
        session=session,
        executed_by=f"{runtime_version()}, operator by operator",
    )
