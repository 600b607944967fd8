"""An artifact for devices of another kind than this machine, whose file has fixed shapes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch

from advisor.errors import MissingDependencyError
from advisor.targets.acceptance import verify_all, write_acceptance
from advisor.targets.agreement import (
    Agreement,
    Shake,
    compare_outputs,
    describe_agreements,
    run_shaken,
)
from advisor.targets.base import LayerFormat, Mismatch, Verification
from advisor.targets.benchmark import Benchmark, Progress
from advisor.targets.fixedshapes import FixedShapes, cut_pieces, read_shapes
from advisor.targets.manifest import CHECK_FOLDER, Manifest, read_manifest
from advisor.targets.pieces import run_pieces
from advisor.targets.plainports import Ports, as_port
from advisor.targets.signature import feed_of, run_called
from advisor.targets.simulation import Simulation, inputs_or_examples, load_simulation

Array = np.ndarray[Any, Any]


class HasPorts(Protocol):
    """What a target keeps of how it wrote a file."""

    @property
    def ports(self) -> Ports:
        """What the file calls its inputs and outputs."""
        ...


Settings = TypeVar("Settings", bound=HasPorts)


@dataclass(slots=True, kw_only=True, eq=False)
class DeviceArtifact(ABC, Generic[Settings]):
    """A folder with a runtime's file, shapes.json, artifact.json and what to check it against.

    settings: how the file was written.
    """

    path: Path
    manifest: Manifest
    shapes: FixedShapes
    settings: Settings

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
            settings=cls.read_settings(path),
        )

    def run(self, *inputs: Any, **named: Any) -> Any:
        """Execute. Takes what the model takes and returns its structure.

        Torch tensors give torch tensors, numpy arrays numpy arrays; a ModelOutput is a dict. Any
        number of rows runs in pieces of the compiled batch.

        Raises:
            InputError: an input is missing, unknown, or of another shape or dtype.
            MissingDependencyError: the runtime is not installed.
        """
        return run_called(self.taking(inputs, named), inputs, named)

    def run_flat(self, arrays: Mapping[str, Array]) -> list[Array]:
        """Execute on arrays by input name; the outputs in order, in the model's own dtypes."""
        results = run_pieces(self._run_once, self.manifest.inputs, self.shapes, arrays)
        return [
            np.asarray(result, dtype=record.dtype)
            for result, record in zip(results, self.manifest.outputs, strict=True)
        ]

    def debug(self, *inputs: Any, **named: Any) -> str:
        """The first layer whose output leaves the simulation, and by how much.

        Every layer gets the simulation's own input, so the first is where it starts.

        Raises:
            InputError: the inputs do not fit the model.
            PlanError: the files to check against are missing.
        """
        simulation = load_simulation(self.path / CHECK_FOLDER)
        manifest = self.taking(inputs, named).manifest
        flat, _ = self.as_taken(inputs_or_examples(manifest, simulation, inputs, named))
        return describe_agreements(self.check_layers(simulation, flat))

    def conclude(
        self,
        formats: Mapping[str, LayerFormat],
        mismatches: Sequence[Mismatch],
        *,
        executed_by: str,
        packages: Sequence[str],
        shake: Shake = run_shaken,
        notes: Sequence[str] = (),
        **more: Any,
    ) -> Verification:
        """Run every layer alone and the whole, and write acceptance.json with every number.

        formats, mismatches: what was read back, and what of it is not the plan's. shake: see
        ``compare_outputs``. packages, more: see ``write_acceptance``.

        Raises:
            PlanError: the files to check against are missing.
        """
        simulation = load_simulation(self.path / CHECK_FOLDER)
        flat, said = self.as_taken(inputs_or_examples(self.manifest, simulation, (), {}))
        agreements = self.check_layers(simulation, flat)
        outputs = [record.name for record in self.manifest.outputs]
        found = self.run_flat(feed_of(self.manifest, flat))
        reference = self.reference_for(simulation, flat)
        worst, outside = compare_outputs(reference, flat, outputs, found, shake)
        verification = verify_all(
            self.manifest,
            agreements,
            (*mismatches, *outside),
            max_abs_error=worst,
            executed_by=executed_by,
            notes=(*notes, *said, *self.notes_on(found)),
        )
        write_acceptance(
            self.path,
            self.manifest,
            verification,
            formats,
            agreements,
            packages=packages,
            executed_by=executed_by,
            **more,
        )
        return verification

    def check_layers(self, simulation: Simulation, flat: Sequence[torch.Tensor]) -> list[Agreement]:
        """Run every layer alone on what the simulation has for these inputs of the model."""
        pieces = cut_pieces(self.manifest.inputs, self.shapes, list(flat))
        return self.check_pieces(simulation, pieces)

    def benchmark(
        self,
        *,
        batch: int | None = None,
        sequence: int | None = None,
        threads: int | None = None,
        seconds: float | None = None,
        progress: Progress | None = None,
    ) -> Benchmark:
        """The speed can only be measured on the device.

        Raises:
            MissingDependencyError: always; says how to measure instead.
        """
        raise MissingDependencyError(self.how_to_measure())

    def taking(self, inputs: Sequence[Any], named: Mapping[str, Any]) -> Self:
        """This artifact, with the dtypes that a call with these arguments has."""
        del inputs, named
        return self

    def as_taken(self, flat: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[str]]:
        """The inputs with numbers that the file can take, and what there is to say about them."""
        return list(flat), []

    def reference_for(self, simulation: Simulation, flat: Sequence[torch.Tensor]) -> Simulation:
        """What the whole is held against on these inputs."""
        del flat
        return simulation

    def notes_on(self, outputs: Sequence[Array]) -> list[str]:
        """What there is to say about the outputs."""
        del outputs
        return []

    def to_port(self, name: str, array: Array) -> Array:
        """An input as the file takes it. name: the model's own."""
        del name
        return as_port(array)

    @staticmethod
    @abstractmethod
    def read_settings(folder: Path) -> Settings:
        """How the file in ``folder`` was written.

        Raises:
            PlanError: missing or damaged.
        """

    @abstractmethod
    def how_to_measure(self) -> str:
        """What to do to learn the file's speed, as the text of an error."""

    @abstractmethod
    def execute(self, feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs in order of one call of the file, for arrays by its own input names."""

    @abstractmethod
    def check_pieces(
        self, simulation: Simulation, pieces: Sequence[Sequence[torch.Tensor]]
    ) -> list[Agreement]:
        """Run every layer alone on the simulation's numbers. pieces: inputs at the file's batch."""

    def _run_once(self, arrays: Sequence[Array]) -> list[Array]:
        """One call of the file, with the model's own tensors on both sides."""
        feeds = {
            self.settings.ports.inputs[record.name]: self.to_port(record.name, array)
            for record, array in zip(self.manifest.inputs, arrays, strict=True)
        }
        return self.execute(feeds)
