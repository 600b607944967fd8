"""The Core ML artifact: run it, verify it, find where it goes wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from advisor.targets.agreement import (
    Agreement,
    run_shaken,
)
from advisor.targets.base import LayerFormat, Verification
from advisor.targets.compare import any_kernel, compare_compute, compare_layers, compare_tensors
from advisor.targets.coreml.agreement import HALF_TOLERANCE, check_layers, run_halved
from advisor.targets.coreml.emit import Settings, read_settings
from advisor.targets.coreml.package import PACKAGE, Package, read_package
from advisor.targets.coreml.readback import read_layers, read_tensors
from advisor.targets.coreml.runtime import Runner, open_runner
from advisor.targets.deviceartifact import Array, DeviceArtifact
from advisor.targets.simulation import (
    Simulation,
)

_PACKAGES: Final = ("coremltools", "torch")


@dataclass(slots=True, kw_only=True, eq=False)
class CoremlArtifact(DeviceArtifact[Settings]):
    """A folder with model.mlpackage, coreml.json, artifact.json and what to check it against.

    settings: how it was written.
    """

    _package: Package | None = None
    _runner: Runner | None = None

    @property
    def package(self) -> Package:
        """The package, read at the first use."""
        if self._package is None:
            self._package = read_package(self.path / PACKAGE)
        return self._package

    @property
    def runner(self) -> Runner:
        """What executes the package here: Core ML on a Mac, else the MIL evaluator."""
        if self._runner is None:
            self._runner = open_runner(self.path, self.settings, self.package)
        return self._runner

    def read_back(self) -> dict[str, LayerFormat]:
        """The format of every layer and the dtype it computes in, from the package alone."""
        return read_layers(self.package, self.manifest.layers)

    def verify(self) -> Verification:
        """Read back every layer, run it alone and in the whole, compare with the simulation.

        Layers are always run alone by the MIL evaluator; the whole is run by Core ML where that
        is here. Writes acceptance.json with every number.

        Raises:
            PlanError: the files to check against are missing.
            MissingDependencyError: coremltools is not installed.
        """
        formats = self.read_back()
        layers, compute = self.manifest.layers, self.settings.compute
        # Which operators compute a layer is coremltools' choice; the rest is compare_compute's.
        mismatches = compare_layers(layers, formats, any_kernel)
        mismatches += compare_compute(layers, formats, compute)
        names = [record.name for record in self.manifest.tensors]
        mismatches += compare_tensors(self.manifest.tensors, read_tensors(self.package, names))
        return self.conclude(
            formats,
            mismatches,
            executed_by=self.runner.name,
            packages=_PACKAGES,
            shake=run_halved if self._has_halves else run_shaken,
            deployment=self.settings.deployment,
            compute=compute,
            float16_tolerance=HALF_TOLERANCE,
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
            "the speed of a Core ML package is measured on the device itself: copy "
            f"{self.path} to it and run `python benchmark.py` there"
        )

    @property
    def _has_halves(self) -> bool:
        """Whether something in the package computes in float16."""
        schemes = {layer.scheme for layer in self.manifest.layers}
        return self.settings.compute == "float16" or "fp16" in schemes

    def execute(self, feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs in order of one call of the package."""
        return self.runner.run(feeds)

    def check_pieces(
        self, simulation: Simulation, pieces: Sequence[Sequence[torch.Tensor]]
    ) -> list[Agreement]:
        """Let the MIL evaluator run every layer alone on the simulation's numbers."""
        return check_layers(self.package, simulation.module, self.manifest.layers, pieces)
