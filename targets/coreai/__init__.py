"""Core AI: an .aimodel for Apple's coming systems, written, read back and executed on Linux.

Experimental: Core AI is a beta. Importing this package loads neither torch nor Core AI.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from advisor.targets.builtin import BuiltIn

if TYPE_CHECKING:
    from advisor.passes.graph import QuantizedGraph
    from advisor.targets.coreai.artifact import CoreaiArtifact

__all__ = ["TARGET", "CoreaiTarget"]

PACKAGES: Final = ("coreai", "coreai_torch", "safetensors")


@dataclass(slots=True)
class CoreaiTarget(BuiltIn):
    """Lowers quantized graphs to Core AI, reads them back, and runs them."""

    NAME: ClassVar = "coreai"

    def emit(self, graph: QuantizedGraph, out: Path) -> CoreaiArtifact:
        """Write the artifact into the existing, empty folder ``out``.

        Raises:
            MissingDependencyError: a package is missing, or does not exist for this system.
            InputError: the model does not accept the deployment's batch or sequence.
            UnsupportedError: an operator has no form in Core AI.
        """
        from advisor.targets.coreai.packages import require

        require(*PACKAGES)
        from advisor.targets.coreai.emit import write_artifact

        write_artifact(graph, out)
        return self.load(out)

    def load(self, folder: Path) -> CoreaiArtifact:
        """The artifact that ``emit`` wrote.

        Raises:
            PlanError: the folder holds no artifact, or a corrupt one.
        """
        from advisor.targets.coreai.artifact import CoreaiArtifact

        return CoreaiArtifact.load(folder)


TARGET = CoreaiTarget()
