"""The Core ML artifact: run it, verify it, find where it goes wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from advisor.errors import UsageError
from advisor.targets.agreement import (
    Agreement,
    run_shaken,
    run_tapped,
)
from advisor.targets.base import LayerFormat, Mismatch, Verification
from advisor.targets.compare import any_kernel, compare_compute, compare_layers, compare_tensors
from advisor.targets.coreml.agreement import HALF_TOLERANCE, check_layers, run_halved
from advisor.targets.coreml.emit import Settings, read_settings
from advisor.targets.coreml.labels import Classification, classify, compare_labels, note_on
from advisor.targets.coreml.package import PACKAGE, Package, read_package
from advisor.targets.coreml.readback import read_layers, read_tensors
from advisor.targets.coreml.runtime import Runner, open_runner
from advisor.targets.coreml.scaling import compare_images
from advisor.targets.deviceartifact import Array, DeviceArtifact
from advisor.targets.plainports import as_port
from advisor.targets.signature import bind
from advisor.targets.simulation import (
    Simulation,
)

_PACKAGES: Final = ("coremltools", "torch")


@dataclass(slots=True, kw_only=True, eq=False)
class CoremlArtifact(DeviceArtifact[Settings]):
    """A folder with model.mlpackage, coreml.json, artifact.json and what to check it against.

    settings: how it was written. An input that the package takes as a picture may be uint8 pixels,
    channels in the model's order; the model's own numbers go in as the nearest pixels, and are
    refused where they are further than half a pixel from all that pixels can be.
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

    def classify(self, *inputs: Any, **named: Any) -> list[Classification]:
        """The label and the scores that the package gives, one for every row of the inputs.

        Takes what ``run`` does.

        Raises:
            UsageError: the package has no labels.
            InputError: as ``run``.
            MissingDependencyError: coremltools is not installed.
        """
        if not self.settings.labels:
            raise UsageError(
                f"{self.path} has no labels; compile with options={{'labels': 'labels.txt'}}"
            )
        taking = self.taking(inputs, named)
        (scores,) = taking.run_flat(bind(taking.manifest, inputs, named))
        return classify(self.settings.labels, scores)

    def run_flat(self, arrays: Mapping[str, Array]) -> list[Array]:
        """Execute on arrays by input name; the outputs in order, in the model's own dtypes."""
        for name, image in self.settings.images.items():
            if arrays[name].dtype != np.uint8:
                image.check(name, arrays[name])
        # A dataclass with slots is a class made anew, of which super() does not know.
        return DeviceArtifact[Settings].run_flat(self, arrays)

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
            [*mismatches, *self.compare_ports()],
            executed_by=self.runner.name,
            packages=_PACKAGES,
            shake=self._run_halved if self._has_halves else run_shaken,
            deployment=self.settings.deployment,
            compute=compute,
            float16_tolerance=HALF_TOLERANCE,
        )

    def compare_ports(self) -> list[Mismatch]:
        """Inputs and labels that are not what the package was written with, from it alone."""
        settings = self.settings
        return [
            *compare_images(
                self.package, settings.images, self.manifest.inputs, settings.ports.inputs
            ),
            *compare_labels(self.package, settings.labels),
        ]

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

    def execute(self, feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs in order of one call of the package."""
        return self.runner.run(feeds)

    def check_pieces(
        self, simulation: Simulation, pieces: Sequence[Sequence[torch.Tensor]]
    ) -> list[Agreement]:
        """Let the evaluator run every layer alone on the simulation's numbers."""
        return check_layers(self.package, simulation.module, self.manifest.layers, pieces)

    @property
    def _has_halves(self) -> bool:
        """Whether something in the package computes in float16."""
        schemes = {layer.scheme for layer in self.manifest.layers}
        return self.settings.compute == "float16" or "fp16" in schemes

    def taking(self, inputs: Sequence[Any], named: Mapping[str, Any]) -> Self:
        """This artifact, taking pixels for its pictures where the call has some."""
        leaves = pytree.tree_leaves((tuple(inputs), dict(named)))
        if not any(str(getattr(leaf, "dtype", "")).endswith("uint8") for leaf in leaves):
            return self
        records = tuple(
            replace(record, dtype="uint8") if record.name in self.settings.images else record
            for record in self.manifest.inputs
        )
        return replace(self, manifest=replace(self.manifest, inputs=records))

    def as_taken(self, flat: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[str]]:
        """The inputs with numbers that pixels can be, and what there is to say about them."""
        made: list[torch.Tensor] = []
        notes: list[str] = []
        for record, tensor in zip(self.manifest.inputs, flat, strict=True):
            image = self.settings.images.get(record.name)
            if image is None:
                made.append(tensor)
                continue
            array = tensor.numpy()
            if array.dtype != np.uint8:
                # The rows after the model's own example are random numbers.
                notes += filter(None, [image.note_on(record.name, array[:1])])
                array = image.pixels_of(array)
            made.append(torch.as_tensor(image.values_of(array)))
        return made, notes

    def reference_for(self, simulation: Simulation, flat: Sequence[torch.Tensor]) -> Simulation:
        """The simulation, with no difference between it and the float model to allow for where
        the float model has not seen these numbers."""
        if not self.settings.images:
            return simulation
        found = run_tapped(simulation.module, (), flat, lambda tap, feeds, end: None)
        names = [record.name for record in self.manifest.outputs]
        return replace(simulation, floats=dict(zip(names, found, strict=True)))

    def _run_halved(self, module: GraphModule, flat: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """``run_halved``, with pictures scaled in float16 too."""
        images = [self.settings.images.get(record.name) for record in self.manifest.inputs]
        halved = [
            tensor if image is None else torch.as_tensor(image.halved(tensor.numpy()))
            for tensor, image in zip(flat, images, strict=True)
        ]
        return run_halved(module, halved)

    def notes_on(self, outputs: Sequence[Array]) -> list[str]:
        """That scores under labels are no probabilities."""
        return [text for array in outputs[:1] if (text := note_on(self.settings.labels, array))]

    def to_port(self, name: str, array: Array) -> Array:
        """Core ML takes float32, int32, and pictures of uint8."""
        image = self.settings.images.get(name)
        if image is None:
            return as_port(array)
        return array if array.dtype == np.uint8 else image.pixels_of(array)
