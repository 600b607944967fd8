"""Core ML: an .mlpackage for Apple devices, written, read back and evaluated on any system.

Importing this package loads neither torch nor coremltools.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from advisor.targets.builtin import BuiltIn
from advisor.targets.coreml.options import DEFAULTS, CoremlOptions

if TYPE_CHECKING:
    from advisor.passes.graph import QuantizedGraph
    from advisor.targets.coreml.artifact import CoremlArtifact

__all__ = ["TARGET", "CoremlOptions", "CoremlTarget"]

PACKAGES: Final = ("coremltools", "safetensors")


@dataclass(slots=True)
class CoremlTarget(BuiltIn):
    """Lowers quantized graphs to Core ML, reads them back, and runs them."""

    NAME: ClassVar = "coreml"

    options: CoremlOptions = DEFAULTS

    def with_options(self, options: CoremlOptions) -> CoremlTarget:
        """The target that writes its files so."""
        return CoremlTarget(options=options)

    def options_for(self, platform: Mapping[str, str]) -> Mapping[str, str]:
        """Options that a profile's platform decides: the systems the package must run on."""
        from advisor.targets.coreml.deployment import for_platform

        is_apple = "ios" in platform or "macos" in platform
        return {"deployment": for_platform(platform)} if is_apple else {}

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


TARGET = CoremlTarget()
