"""The Core AI artifact: run it, verify it, find where it goes wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch

from advisor.errors import MissingDependencyError
from advisor.targets.acceptance import verify_all, write_acceptance
from advisor.targets.agreement import Agreement, compare_outputs, describe_agreements
from advisor.targets.base import LayerFormat, Verification
from advisor.targets.benchmark import Benchmark, Progress
from advisor.targets.compare import any_kernel, compare_compute, compare_layers, compare_tensors
from advisor.targets.coreai.agreement import check_layers
from advisor.targets.coreai.emit import Settings, read_settings
from advisor.targets.coreai.program import FUNCTION, PACKAGE, Program, read_program
from advisor.targets.coreai.readback import read_layers, read_tensors
from advisor.targets.coreai.runtime import Session, runtime_name
from advisor.targets.fixedshapes import FixedShapes, cut_pieces, read_shapes
from advisor.targets.manifest import CHECK_FOLDER, Manifest, read_manifest
from advisor.targets.pieces import run_pieces
from advisor.targets.plainports import as_port
from advisor.targets.signature import feed_of, run_called
from advisor.targets.simulation import Simulation, inputs_or_examples, load_simulation

_PACKAGES: Final = ("coreai-core", "coreai-torch", "torch")

EXPERIMENTAL: Final = (
    "Core AI is a beta, and so is this target; nothing of it has run on Apple hardware"
)

Array = np.ndarray[Any, Any]


@dataclass(slots=True, kw_only=True, eq=False)
class CoreaiArtifact:
    """A folder with model.aimodel, coreai.json, artifact.json and what to check it against.

    settings: what the package's parts are called.
    """

    path: Path
    manifest: Manifest
    shapes: FixedShapes
    settings: Settings
    _package: Program | None = None
    _session: Session | None = None

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

    def run(self, *inputs: Any, **named: Any) -> Any:
        """Execute. Takes what the model takes and returns its structure.

        Torch tensors give torch tensors, numpy arrays numpy arrays; a ModelOutput is a dict. Any
        number of rows runs in pieces of the compiled batch.

        Raises:
            InputError: an input is missing, unknown, or of another shape or dtype.
            MissingDependencyError: Core AI is not installed, or does not exist for this system.
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
        """The format of every layer, from the package alone."""
        return read_layers(self.package, self.settings.names, self.manifest.layers)

    def verify(self) -> Verification:
        """Read back every layer, run it alone and in the whole, compare with the simulation.

        Writes acceptance.json with every number.

        Raises:
            PlanError: the files to check against are missing.
            MissingDependencyError: Core AI is not installed, or does not exist for this system.
        """
        simulation = load_simulation(self.path / CHECK_FOLDER)
        flat = inputs_or_examples(self.manifest, simulation, (), {})
        formats = self.read_back()
        layers = self.manifest.layers
        mismatches = compare_layers(layers, formats, any_kernel)
        mismatches += compare_compute(layers, formats, "float32")
        names = [record.name for record in self.manifest.tensors]
        tensors = read_tensors(self.package, self.settings.names, names)
        mismatches += compare_tensors(self.manifest.tensors, tensors)
        agreements = self._check(simulation, flat)
        outputs = [record.name for record in self.manifest.outputs]
        found = self.run_flat(feed_of(self.manifest, flat))
        worst, outside = compare_outputs(simulation, flat, outputs, found)
        verification = verify_all(
            self.manifest,
            agreements,
            (*mismatches, *outside),
            max_abs_error=worst,
            executed_by=runtime_name(),
            notes=(EXPERIMENTAL,),
        )
        write_acceptance(
            self.path,
            self.manifest,
            verification,
            formats,
            agreements,
            packages=_PACKAGES,
            executed_by=verification.executed_by,
            experimental=EXPERIMENTAL,
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
        """Core AI's speed can only be measured on the device.

        Raises:
            MissingDependencyError: always; says why.
        """
        raise MissingDependencyError(
            "the speed of a Core AI package is that of the device's own Core AI (macOS 27, iOS "
            "27), which this project has not; the runtime that executes packages here is for "
            "checking numbers. Plan for runtime='coreml' to measure on today's devices"
        )

    def _run_once(self, arrays: Sequence[Array]) -> list[Array]:
        """One call of the package, with the model's own tensors on both sides."""
        ports = self.settings.ports
        feeds = {
            ports.inputs[record.name]: as_port(array)
            for record, array in zip(self.manifest.inputs, arrays, strict=True)
        }
        found = self.session.run(FUNCTION, feeds)
        return [found[ports.outputs[record.name]] for record in self.manifest.outputs]

    def _check(self, simulation: Simulation, flat: Sequence[torch.Tensor]) -> list[Agreement]:
        pieces = cut_pieces(self.manifest.inputs, self.shapes, list(flat))
        return check_layers(
            self.package, self.settings.names, simulation.module, self.manifest.layers, pieces
        )
