"""ONNX Runtime on the CPU: a portable ONNX file whose quantized layers run in integer kernels.

Importing this package loads neither torch nor onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.targets.capability import Capability

if TYPE_CHECKING:
    import torch

    from advisor.passes.graph import QuantizedGraph
    from advisor.targets.base import Artifact, LayerFormat, Timing
    from advisor.targets.onnxruntime.artifact import OnnxRuntimeArtifact

NAME = "onnxruntime"
PACKAGES = ("onnx", "onnxscript", "onnxruntime", "safetensors")


@dataclass(slots=True)
class OnnxRuntimeTarget:
    """Lowers quantized graphs to ONNX, reads them back, and runs them."""

    _capability: Capability | None = None

    @property
    def capability(self) -> Capability:
        """What ONNX Runtime supports, from onnxruntime.toml."""
        if self._capability is None:
            from advisor.targets.capability import load_capability

            self._capability = load_capability(NAME)
        return self._capability

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

    def read_back(self, artifact: Artifact) -> Mapping[str, LayerFormat]:
        """The precision of every layer, from the files alone."""
        return self.load(artifact.path).read_back()

    def run(self, artifact: Artifact, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:
        """Execute with flat named inputs; flat named outputs as torch tensors."""
        from advisor.targets.signature import run_named

        return run_named(self.load(artifact.path), inputs)

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
