"""The Core AI artifact: run it, verify it, find where it goes wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from advisor.targets.agreement import Agreement
from advisor.targets.base import LayerFormat, Verification
from advisor.targets.compare import any_kernel, compare_compute, compare_layers, compare_tensors
from advisor.targets.coreai.agreement import check_layers
from advisor.targets.coreai.emit import Settings, read_settings
from advisor.targets.coreai.program import FUNCTION, PACKAGE, Program, read_program
from advisor.targets.coreai.readback import read_layers, read_tensors
from advisor.targets.coreai.runtime import Session, runtime_name
from advisor.targets.deviceartifact import Array, DeviceArtifact
from advisor.targets.simulation import Simulation

_PACKAGES: Final = ("coreai-core", "coreai-torch", "torch")

EXPERIMENTAL: Final = (
    "Core AI is a beta, and so is this target; nothing of it has run on Apple hardware"
)


@dataclass(slots=True, kw_only=True, eq=False)
class CoreaiArtifact(DeviceArtifact[Settings]):
    """A folder with model.aimodel, coreai.json, artifact.json and what to check it against.

    settings: what the package's parts are called.
    """

    _package: Program | None = None
    _session: Session | None = None

    @property
    def package(self) -> Program:
        """The package, read at the first use."""
        if self._package is None:
            self._package = read_program(self.path / PACKAGE)
        return self._package

    @property
    def session(self) -> Session:
        """The package in Core AI's runtime, opened at the first use."""
        if self._session is None:
            self._session = Session(self.package.asset)
        return self._session

    def read_back(self) -> dict[str, LayerFormat]:
        """The format of every layer, from the package alone."""
        return read_layers(self.package, self.settings.names, self.manifest.layers)

    def verify(self) -> Verification:
        """Read back every layer, run it alone and in the whole, compare with the simulation.

        Writes acceptance.json with every number.

        Raises:
            PlanError: the files to check against are missing.
            MissingDependencyError: Core AI is not installed, or does not exist for this system.
        """
        formats = self.read_back()
        layers = self.manifest.layers
        mismatches = compare_layers(layers, formats, any_kernel)
        mismatches += compare_compute(layers, formats, "float32")
        names = [record.name for record in self.manifest.tensors]
        tensors = read_tensors(self.package, self.settings.names, names)
        mismatches += compare_tensors(self.manifest.tensors, tensors)
        return self.conclude(
            formats,
            mismatches,
            executed_by=runtime_name(),
            packages=_PACKAGES,
            notes=(EXPERIMENTAL,),
            experimental=EXPERIMENTAL,
        )

    @staticmethod
    def read_settings(folder: Path) -> Settings:
        """How the package in ``folder`` was written.

        Raises:
            PlanError: missing or damaged.
        """
        return read_settings(folder)

    def how_to_measure(self) -> str:
        """What to do to learn the package's speed, as the text of an error."""
        return (
            "the speed of a Core AI package is that of the device's own Core AI (macOS 27, iOS "
            "27), which this project has not; the runtime that executes packages here is for "
            "checking numbers. Plan for runtime='coreml' to measure on today's devices"
        )

    def execute(self, feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs in order of one call of the package."""
        found = self.session.run(FUNCTION, feeds)
        return [found[name] for name in self.settings.ports.outputs.values()]

    def check_pieces(
        self, simulation: Simulation, pieces: Sequence[Sequence[torch.Tensor]]
    ) -> list[Agreement]:
        """Let Core AI run every layer alone on the simulation's numbers."""
        return check_layers(
            self.package, self.settings.names, simulation.module, self.manifest.layers, pieces
        )
