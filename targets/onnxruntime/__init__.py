"""ONNX Runtime on the CPU: a portable ONNX file whose quantized layers run in integer kernels.

Importing this package loads neither torch nor onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from advisor.targets.builtin import BuiltIn

if TYPE_CHECKING:
    from advisor.passes.graph import QuantizedGraph
    from advisor.targets.base import Timing
    from advisor.targets.onnxruntime.artifact import OnnxRuntimeArtifact

PACKAGES = ("onnx", "onnxscript", "onnxruntime", "safetensors")


@dataclass(slots=True)
class OnnxRuntimeTarget(BuiltIn):
    """Lowers quantized graphs to ONNX, reads them back, and runs them."""

    NAME: ClassVar = "onnxruntime"

    def emit(self, graph: QuantizedGraph, out: Path) -> OnnxRuntimeArtifact:
        """Write the artifact into the existing, empty folder ``out``.

        Raises:
            MissingDependencyError: a package is missing; says how to install it.
            UnsupportedError: a layer has a form no kernel of ONNX Runtime takes.
            VerificationError: a dimension that should be dynamic became fixed.
        """
        from advisor.targets.onnxruntime.session import require

        require(*PACKAGES)
        from advisor.targets.onnxruntime.emit import write_artifact

        write_artifact(graph, out)
        return self.load(out)

    def load(self, folder: Path) -> OnnxRuntimeArtifact:
        """The artifact that ``emit`` wrote.

        Raises:
            PlanError: the folder holds no artifact, or a corrupt one.
        """
        from advisor.targets.onnxruntime.artifact import OnnxRuntimeArtifact

        return OnnxRuntimeArtifact.load(folder)

    def time_models(
        self,
        builders: Sequence[Callable[[], QuantizedGraph]],
        inputs: Sequence[Any],
        *,
        threads: int | None,
        limit_s: float,
        with_parts: bool,
        say: Callable[[int, int], None],
    ) -> tuple[Timing, ...]:
        """Time the models that ``builders`` make, in turns; see ``advisor.targets.base.Stopwatch``.

        Raises:
            MissingDependencyError: a package is missing; says how to install it.
        """
        from advisor.targets.onnxruntime.session import require

        require(*PACKAGES)
        from advisor.targets.onnxruntime.timing import time_models

        return time_models(
            builders,
            inputs,
            threads=threads,
            limit_s=limit_s,
            with_parts=with_parts,
            say=say,
        )

    def machine(self) -> Mapping[str, str]:
        """Runtime version, processor and its instruction sets.

        Raises:
            MissingDependencyError: onnxruntime is not installed.
        """
        from advisor.targets.machine import describe_machine
        from advisor.targets.onnxruntime.session import runtime_version

        return describe_machine(runtime_version())


TARGET = OnnxRuntimeTarget()
