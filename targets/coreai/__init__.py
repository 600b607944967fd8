"""Core AI: an .aimodel for Apple's coming systems, written, read back and executed on Linux.

Experimental: Core AI is a beta. Importing this package loads neither torch nor Core AI.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from advisor.targets.capability import Capability

if TYPE_CHECKING:
    import torch

    from advisor.passes.graph import QuantizedGraph
    from advisor.targets.base import Artifact, LayerFormat
    from advisor.targets.coreai.artifact import CoreaiArtifact

__all__ = ["TARGET", "CoreaiTarget"]

NAME: Final = "coreai"
PACKAGES: Final = ("coreai", "coreai_torch", "safetensors")


@dataclass(slots=True)
class CoreaiTarget:
    """Lowers quantized graphs to Core AI, reads them back, and runs them."""

    _capability: Capability | None = None

    @property
    def capability(self) -> Capability:
        """What Core AI supports, from coreai.toml."""
        if self._capability is None:
            from advisor.targets.capability import load_capability

            self._capability = load_capability(NAME)
        return self._capability

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

    def read_back(self, artifact: Artifact) -> Mapping[str, LayerFormat]:
        """The precision of every layer, from the files alone."""
        return self.load(artifact.path).read_back()

    def run(self, artifact: Artifact, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:
        """Execute with flat named inputs; flat named outputs as torch tensors."""
        from advisor.targets.signature import run_named

        return run_named(self.load(artifact.path), inputs)


TARGET = CoreaiTarget()
