"""The Core ML artifact: run it, verify it, find where it goes wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch

from advisor.errors import MissingDependencyError
from advisor.targets.acceptance import verify_all, write_acceptance
from advisor.targets.agreement import (
    Agreement,
    compare_outputs,
    describe_agreements,
    run_shaken,
)
from advisor.targets.base import LayerFormat, Verification
from advisor.targets.benchmark import Benchmark, Progress
from advisor.targets.compare import any_kernel, compare_compute, compare_layers, compare_tensors
from advisor.targets.coreml.agreement import HALF_TOLERANCE, check_layers, run_halved
from advisor.targets.coreml.emit import Settings, read_settings
from advisor.targets.coreml.package import PACKAGE, Package, read_package
from advisor.targets.coreml.readback import read_layers, read_tensors
from advisor.targets.coreml.runtime import Runner, open_runner
from advisor.targets.fixedshapes import FixedShapes, cut_pieces, read_shapes
from advisor.targets.manifest import CHECK_FOLDER, Manifest, read_manifest
from advisor.targets.pieces import run_pieces
from advisor.targets.plainports import as_port
from advisor.targets.signature import feed_of, run_called
from advisor.targets.simulation import (
    Simulation,
    inputs_or_examples,
    load_simulation,
)

_PACKAGES: Final = ("coremltools", "torch")

Array = np.ndarray[Any, Any]


@dataclass(slots=True, kw_only=True, eq=False)
class CoremlArtifact:
    """A folder with model.mlpackage, coreml.json, artifact.json and what to check it against.

    settings: how it was written.
    """

    path: Path
    manifest: Manifest
    shapes: FixedShapes
    settings: Settings
    _package: Package | None = None
    _runner: Runner | None = None

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The artifact that ``plan.compile`` wrote into ``folder``.

        Raises:
            PlanError: the folder holds no artifact, or a corrupt one.
        """
        path = Path(folder)
        return cls(
            path=path,
            manifest=read_manifest(path),
            shapes=read_shapes(path),
            settings=read_settings(path),
        )

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

    def run(self, *inputs: Any, **named: Any) -> Any:
        """Execute. Takes what the model takes and returns its structure.

        Torch tensors give torch tensors, numpy arrays numpy arrays; a ModelOutput is a dict. Any
        number of rows runs in pieces of the compiled batch.

        Raises:
            InputError: an input is missing, unknown, or of another shape or dtype.
            MissingDependencyError: coremltools is not installed.
        """
        return run_called(self, inputs, named)

    def run_flat(self, arrays: Mapping[str, Array]) -> list[Array]:
        """Execute on arrays by input name; the outputs in order, in the model's own dtypes."""
        results = run_pieces(self._run_once, self.manifest.inputs, self.shapes, arrays)
        return [
            np.asarray(result, dtype=record.dtype)
            for result, record in zip(results, self.manifest.outputs, strict=True)
        ]

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
        simulation = load_simulation(self.path / CHECK_FOLDER)
        flat = inputs_or_examples(self.manifest, simulation, (), {})
        formats = self.read_back()
        layers, compute = self.manifest.layers, self.settings.compute
        # Which operators compute a layer is coremltools' choice; the rest is compare_compute's.
        mismatches = compare_layers(layers, formats, any_kernel)
        mismatches += compare_compute(layers, formats, compute)
        names = [record.name for record in self.manifest.tensors]
        mismatches += compare_tensors(self.manifest.tensors, read_tensors(self.package, names))
        agreements = self._check(simulation, flat)
        found = self.run_flat(feed_of(self.manifest, flat))
        worst, outside = compare_outputs(
            simulation,
            flat,
            [record.name for record in self.manifest.outputs],
            found,
            run_halved if self._has_halves else run_shaken,
        )
        verification = verify_all(
            self.manifest,
            agreements,
            (*mismatches, *outside),
            max_abs_error=worst,
            executed_by=self.runner.name,
        )
        write_acceptance(
            self.path,
            self.manifest,
            verification,
            formats,
            agreements,
            packages=_PACKAGES,
            executed_by=verification.executed_by,
            deployment=self.settings.deployment,
            compute=compute,
            float16_tolerance=HALF_TOLERANCE,
        )
        return verification

    def debug(self, *inputs: Any, **named: Any) -> str:
        """The first layer whose output leaves the simulation, and by how much.

        Every layer gets the simulation's own input, so the first is where it starts.

        Raises:
            InputError: the inputs do not fit the model.
            PlanError: the files to check against are missing.
        """
        simulation = load_simulation(self.path / CHECK_FOLDER)
        flat = inputs_or_examples(self.manifest, simulation, inputs, named)
        return describe_agreements(self._check(simulation, flat))

    def benchmark(
        self,
        *,
        batch: int | None = None,
        sequence: int | None = None,
        threads: int | None = None,
        seconds: float | None = None,
        progress: Progress | None = None,
    ) -> Benchmark:
        """Core ML's speed can only be measured on the device.

        Raises:
            MissingDependencyError: always; says how to measure instead.
        """
        raise MissingDependencyError(
            "the speed of a Core ML package is measured on the device itself: copy "
            f"{self.path} to it and run `python benchmark.py` there"
        )

    @property
    def _has_halves(self) -> bool:
        """Whether something in the package computes in float16."""
        schemes = {layer.scheme for layer in self.manifest.layers}
        return self.settings.compute == "float16" or "fp16" in schemes

    def _run_once(self, arrays: Sequence[Array]) -> list[Array]:
        """One call of the package, with the model's own tensors on both sides."""
        ports = self.settings.ports
        feeds = {
            ports.inputs[record.name]: as_port(array)
            for record, array in zip(self.manifest.inputs, arrays, strict=True)
        }
        return self.runner.run(feeds)

    def _check(self, simulation: Simulation, flat: Sequence[torch.Tensor]) -> list[Agreement]:
        pieces = cut_pieces(self.manifest.inputs, self.shapes, list(flat))
        return check_layers(self.package, simulation.module, self.manifest.layers, pieces)
