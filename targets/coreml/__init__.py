"""Core ML: an .mlpackage for Apple devices, written, read back and evaluated on any system.

Importing this package loads neither torch nor coremltools.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from advisor.targets.capability import Capability
from advisor.targets.coreml.options import DEFAULTS, CoremlOptions

if TYPE_CHECKING:
    import torch

    from advisor.passes.graph import QuantizedGraph
    from advisor.targets.base import Artifact, LayerFormat
    from advisor.targets.coreml.artifact import CoremlArtifact

__all__ = ["TARGET", "CoremlOptions", "CoremlTarget"]

NAME: Final = "coreml"
PACKAGES: Final = ("coremltools", "safetensors")


@dataclass(slots=True)
class CoremlTarget:
    """Lowers quantized graphs to Core ML, reads them back, and runs them."""

    options: CoremlOptions = DEFAULTS
    _capability: Capability | None = None

    @property
    def capability(self) -> Capability:
        """What Core ML supports, from coreml.toml."""
        if self._capability is None:
            from advisor.targets.capability import load_capability

            self._capability = load_capability(NAME)
        return self._capability

    def with_options(self, options: CoremlOptions) -> CoremlTarget:
        """The target that writes its files so."""
        return CoremlTarget(options=options)

    def options_for(self, platform: Mapping[str, str]) -> Mapping[str, str]:
        """Options that a profile's platform decides: the systems the package must run on."""
        from advisor.targets.coreml.deployment import for_platform

        return {"deployment": for_platform(platform)} if platform else {}

    def emit(self, graph: QuantizedGraph, out: Path) -> CoremlArtifact:
        """Write the artifact into the existing, empty folder ``out``.

        Raises:
            MissingDependencyError: a package is missing; says how to install it.
            InputError: the model does not accept the deployment's batch or sequence.
            UnsupportedError: an operator has no form in Core ML, or a scheme needs a newer system.
            VerificationError: the package needs a newer system than asked.
        """
        from advisor.targets.coreml.packages import require

        require(*PACKAGES)
        from advisor.targets.coreml.emit import write_artifact

        write_artifact(graph, out, self.options)
        return self.load(out)

    def load(self, folder: Path) -> CoremlArtifact:
        """The artifact that ``emit`` wrote.

        Raises:
            PlanError: the folder holds no artifact, or a corrupt one.
        """
        from advisor.targets.coreml.artifact import CoremlArtifact

        return CoremlArtifact.load(folder)

    def read_back(self, artifact: Artifact) -> Mapping[str, LayerFormat]:
        """The precision of every layer, from the files alone."""
        return self.load(artifact.path).read_back()

    def run(self, artifact: Artifact, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:
        """Execute with flat named inputs; flat named outputs as torch tensors."""
        from advisor.targets.signature import run_named

        return run_named(self.load(artifact.path), inputs)


TARGET = CoremlTarget()
