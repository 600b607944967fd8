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

from advisor.errors import MissingDependencyError, UsageError
from advisor.targets.acceptance import verify_all, write_acceptance
from advisor.targets.agreement import (
    Agreement,
    compare_outputs,
    describe_agreements,
    run_shaken,
    run_tapped,
)
from advisor.targets.base import LayerFormat, Mismatch, Verification
from advisor.targets.benchmark import Benchmark, Progress
from advisor.targets.compare import any_kernel, compare_compute, compare_layers, compare_tensors
from advisor.targets.coreml.agreement import HALF_TOLERANCE, check_layers, run_halved
from advisor.targets.coreml.emit import Settings, read_settings
from advisor.targets.coreml.images import Image
from advisor.targets.coreml.labels import Classification, classify, compare_labels, note_on
from advisor.targets.coreml.package import PACKAGE, Package, read_package
from advisor.targets.coreml.readback import read_layers, read_tensors
from advisor.targets.coreml.runtime import Runner, open_runner
from advisor.targets.coreml.scaling import compare_images
from advisor.targets.fixedshapes import FixedShapes, cut_pieces, read_shapes
from advisor.targets.manifest import CHECK_FOLDER, Manifest, read_manifest
from advisor.targets.pieces import run_pieces
from advisor.targets.signature import bind, feed_of, run_called
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
        number of rows runs in pieces of the compiled batch. An input that the package takes as a
        picture may be uint8 pixels, channels in the model's order; the model's own numbers go in
        as the nearest pixels.

        Raises:
            InputError: an input is missing, unknown, or of another shape or dtype; a picture's
                numbers are further than half a pixel from all that pixels can be.
            MissingDependencyError: coremltools is not installed.
        """
        return run_called(self._taking(inputs, named), inputs, named)

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
        taking = self._taking(inputs, named)
        (scores,) = taking.run_flat(bind(taking.manifest, inputs, named))
        return classify(self.settings.labels, scores)

    def run_flat(self, arrays: Mapping[str, Array]) -> list[Array]:
        """Execute on arrays by input name; the outputs in order, in the model's own dtypes."""
        self._check_pixels(arrays)
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
        flat, notes = self._as_pictures(inputs_or_examples(self.manifest, simulation, (), {}))
        formats = self.read_back()
        layers, compute = self.manifest.layers, self.settings.compute
        # Which operators compute a layer is coremltools' choice; the rest is compare_compute's.
        mismatches = compare_layers(layers, formats, any_kernel)
        mismatches += compare_compute(layers, formats, compute)
        names = [record.name for record in self.manifest.tensors]
        mismatches += compare_tensors(self.manifest.tensors, read_tensors(self.package, names))
        mismatches += self.compare_ports()
        agreements = self._check(simulation, flat)
        found = self.run_flat(feed_of(self.manifest, flat))
        worst, outside = compare_outputs(
            self._on_pictures(simulation, flat),
            flat,
            [record.name for record in self.manifest.outputs],
            found,
            self._run_halved if self._has_halves else run_shaken,
        )
        notes += [text for array in found[:1] if (text := note_on(self.settings.labels, array))]
        verification = verify_all(
            self.manifest,
            agreements,
            (*mismatches, *outside),
            max_abs_error=worst,
            executed_by=self.runner.name,
            notes=notes,
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

    def compare_ports(self) -> list[Mismatch]:
        """Inputs and labels that are not what the package was written with, from it alone."""
        settings = self.settings
        return [
            *compare_images(
                self.package, settings.images, self.manifest.inputs, settings.ports.inputs
            ),
            *compare_labels(self.package, settings.labels),
        ]

    def debug(self, *inputs: Any, **named: Any) -> str:
        """The first layer whose output leaves the simulation, and by how much.

        Every layer gets the simulation's own input, so the first is where it starts.

        Raises:
            InputError: the inputs do not fit the model.
            PlanError: the files to check against are missing.
        """
        simulation = load_simulation(self.path / CHECK_FOLDER)
        manifest = self._taking(inputs, named).manifest
        flat, _ = self._as_pictures(inputs_or_examples(manifest, simulation, inputs, named))
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
            ports.inputs[record.name]: _as_port(array, self.settings.images.get(record.name))
            for record, array in zip(self.manifest.inputs, arrays, strict=True)
        }
        return self.runner.run(feeds)

    def _taking(self, inputs: Sequence[Any], named: Mapping[str, Any]) -> Self:
        """This artifact, taking pixels for its pictures where the call has some."""
        leaves = pytree.tree_leaves((tuple(inputs), dict(named)))
        if not any(str(getattr(leaf, "dtype", "")).endswith("uint8") for leaf in leaves):
            return self
        records = tuple(
            replace(record, dtype="uint8") if record.name in self.settings.images else record
            for record in self.manifest.inputs
        )
        return replace(self, manifest=replace(self.manifest, inputs=records))

    def _check_pixels(self, arrays: Mapping[str, Array]) -> None:
        for name, image in self.settings.images.items():
            if arrays[name].dtype != np.uint8:
                image.check(name, arrays[name])

    def _as_pictures(self, flat: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[str]]:
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

    def _on_pictures(self, simulation: Simulation, flat: Sequence[torch.Tensor]) -> Simulation:
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

    def _check(self, simulation: Simulation, flat: Sequence[torch.Tensor]) -> list[Agreement]:
        pieces = cut_pieces(self.manifest.inputs, self.shapes, list(flat))
        return check_layers(self.package, simulation.module, self.manifest.layers, pieces)


def _as_port(array: Array, image: Image | None) -> Array:
    """Core ML takes float32, int32, and pictures of uint8."""
    if image is not None:
        return array if array.dtype == np.uint8 else image.pixels_of(array)
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
