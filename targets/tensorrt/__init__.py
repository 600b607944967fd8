"""TensorRT: a strongly typed ONNX model for NVIDIA GPUs, checked with NVIDIA's compiler.

No GPU is needed: TensorRT-RTX compiles on any machine, and tells which kernel runs every layer.
Importing this package loads neither torch nor TensorRT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from advisor.targets.builtin import BuiltIn
from advisor.targets.tensorrt.options import DEFAULTS, TensorrtOptions

if TYPE_CHECKING:
    from advisor.passes.graph import QuantizedGraph
    from advisor.targets.tensorrt.artifact import TensorrtArtifact

__all__ = ["TARGET", "TensorrtOptions", "TensorrtTarget"]

PACKAGES: Final = ("onnx", "onnx_ir", "onnxscript", "onnxruntime", "safetensors")
"""What writing and checking the numbers takes; compiling takes tensorrt_rtx besides."""


@dataclass(slots=True)
class TensorrtTarget(BuiltIn):
    """Lowers quantized graphs to ONNX for TensorRT, reads them back, and has them compiled."""

    NAME: ClassVar = "tensorrt"

    options: TensorrtOptions = DEFAULTS

    def with_options(self, options: TensorrtOptions) -> TensorrtTarget:
        """The target that writes its files so."""
        return TensorrtTarget(options=options)

    def options_for(self, platform: Mapping[str, str]) -> Mapping[str, str]:
        """Options that a profile's platform decides: the compute capability to compile for."""
        return {"sm": platform["sm"]} if "sm" in platform else {}

    def emit(self, graph: QuantizedGraph, out: Path) -> TensorrtArtifact:
        """Write the artifact into the existing, empty folder ``out``.

        Raises:
            MissingDependencyError: a package is missing; says how to install it.
            UnsupportedError: a layer or a tensor has a form that TensorRT does not take.
            VerificationError: a dimension that should be dynamic became fixed.
        """
        from advisor.targets.packages import require_packages

        require_packages("TensorRT", self.NAME, PACKAGES)
        from advisor.targets.tensorrt.emit import write_artifact

        write_artifact(graph, out, self.options)
        return self.load(out)

    def load(self, folder: Path) -> TensorrtArtifact:
        """The artifact that ``emit`` wrote.

        Raises:
            PlanError: the folder holds no artifact, or a corrupt one.
        """
        from advisor.targets.tensorrt.artifact import TensorrtArtifact

        return TensorrtArtifact.load(folder)


TARGET = TensorrtTarget()
