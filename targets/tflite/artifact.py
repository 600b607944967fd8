"""The TFLite artifact: run it, verify it, find where it goes wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch

from advisor.targets.acceptance import verify_all, write_acceptance
from advisor.targets.agreement import Agreement, compare_outputs, describe_agreements
from advisor.targets.base import LayerFormat, Verification
from advisor.targets.benchmark import Benchmark, Progress
from advisor.targets.compare import any_kernel, compare_layers, compare_tensors
from advisor.targets.fixedshapes import FixedShapes, cut_pieces, read_shapes
from advisor.targets.manifest import CHECK_FOLDER, Manifest, read_manifest
from advisor.targets.pieces import run_pieces
from advisor.targets.signature import feed_of, run_called
from advisor.targets.simulation import (
    Simulation,
    inputs_or_examples,
    load_simulation,
)
from advisor.targets.tflite.agreement import check_layers
from advisor.targets.tflite.benchmark import ROUNDS, SECONDS, run_benchmark
from advisor.targets.tflite.edge_tpu import Lint, lint
from advisor.targets.tflite.emit import MODEL_FILE, read_options
from advisor.targets.tflite.flatbuffer import FlatModel
from advisor.targets.tflite.interpreter import LiteModel, runtime_version
from advisor.targets.tflite.options import DEFAULTS, TfliteOptions
from advisor.targets.tflite.ports import compare_ports, from_file, to_file
from advisor.targets.tflite.readback import read_layers, read_tensors

_PACKAGES: Final = ("ai-edge-litert", "litert-torch", "torch")


@dataclass(slots=True, kw_only=True, eq=False)
class TfliteArtifact:
    """A folder with model.tflite, shapes.json, artifact.json and what to check it against.

    options: how it was written. threads: that run the model, or None for LiteRT's own choice,
    which is one.
    """

    path: Path
    manifest: Manifest
    shapes: FixedShapes
    options: TfliteOptions = DEFAULTS
    threads: int | None = None
    _model: LiteModel | None = None

    @classmethod
    def load(cls, folder: str | Path, *, threads: int | None = None) -> Self:
        """The artifact that ``plan.compile`` wrote into ``folder``.

        Raises:
            PlanError: the folder holds no artifact, or a corrupt one.
        """
        path = Path(folder)
        manifest = read_manifest(path)
        return cls(
            path=path,
            manifest=manifest,
            shapes=read_shapes(path),
            options=read_options(path),
            threads=threads,
        )

    @property
    def model(self) -> LiteModel:
        """The model, opened at the first use."""
        if self._model is None:
            self._model = LiteModel((self.path / MODEL_FILE).read_bytes(), self.threads)
        return self._model

    def run(self, *inputs: Any, **named: Any) -> Any:
        """Execute. Takes what the model takes and returns its structure.

        That holds for every option: where the file has integers or channels last
        (``manifest.ports``), the model's own tensors are rounded and moved before and after.

        Torch tensors give torch tensors, numpy arrays numpy arrays; a ModelOutput is a dict. Any
        number of rows runs in pieces of the compiled batch.

        Raises:
            InputError: an input is missing, unknown, or of another shape or dtype.
            MissingDependencyError: ai-edge-litert is not installed.
        """
        return run_called(self, inputs, named)

    def run_flat(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """Execute on arrays by input name; the outputs in order, in the model's own dtypes."""
        results = run_pieces(self._run_once, self.manifest.inputs, self.shapes, arrays)
        return [
            np.asarray(result, dtype=record.dtype)
            for result, record in zip(results, self.manifest.outputs, strict=True)
        ]

    def read_back(self) -> dict[str, LayerFormat]:
        """The format of every layer, from the file alone."""
        return read_layers(self._load(), self.manifest.layers)

    def edge_tpu(self) -> Lint:
        """Which operators an Edge TPU would run, and why not the others, by its documentation."""
        return lint(self._load())

    def verify(self) -> Verification:
        """Read back every layer, run it alone and in the whole, compare with the simulation.

        Writes acceptance.json with every number, and with how XNNPACK splits the model.

        Raises:
            PlanError: the files to check against are missing.
            MissingDependencyError: ai-edge-litert is not installed.
        """
        simulation = load_simulation(self.path / CHECK_FOLDER)
        flat = inputs_or_examples(self.manifest, simulation, (), {})
        model = self._load()
        agreements, kernels = self._check(model, simulation, flat)
        formats = {
            name: replace(found, kernel=kernels.get(name, ""))
            for name, found in read_layers(model, self.manifest.layers).items()
        }
        # XNNPACK's arithmetic is what is checked; built-in kernels that agree are as good.
        mismatches = compare_layers(self.manifest.layers, formats, any_kernel)
        mismatches += compare_tensors(
            self.manifest.tensors,
            read_tensors(model, [record.name for record in self.manifest.tensors]),
        )
        mismatches += compare_ports(self.manifest.ports, model)
        found = self.run_flat(feed_of(self.manifest, flat))
        names = [record.name for record in self.manifest.outputs]
        worst, outside = compare_outputs(simulation, flat, names, found)
        checked = lint(model) if self.options.accelerator == "edge-tpu" else None
        verification = verify_all(
            self.manifest,
            agreements,
            (*mismatches, *outside),
            max_abs_error=worst,
            executed_by=runtime_version(),
            notes=() if checked is None else checked.describe(),
        )
        write_acceptance(
            self.path,
            self.manifest,
            verification,
            formats,
            agreements,
            packages=_PACKAGES,
            partitions=asdict(self.model.partitions()),
            **({} if checked is None else {"edge_tpu": asdict(checked)}),
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
        return describe_agreements(self._check(self._load(), simulation, flat)[0])

    def benchmark(
        self,
        *,
        batch: int | None = None,
        sequence: int | None = None,
        threads: int | None = None,
        rounds: int = ROUNDS,
        seconds: float | None = None,
        progress: Progress | None = None,
    ) -> Benchmark:
        """Latency and throughput of the float model and of the plan, side by side.

        Raises:
            InputError: another batch or sequence than the compiled one.
            PlanError: the files to compare with are missing.
            UsageError: too few rounds, or no time.
            MissingDependencyError: ai-edge-litert is not installed.
        """
        return run_benchmark(
            self.path,
            self.manifest,
            self.shapes,
            batch=batch,
            sequence=sequence,
            threads=self.threads if threads is None else threads,
            rounds=rounds,
            seconds=SECONDS if seconds is None else seconds,
            progress=progress,
        )

    def _run_once(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """One call of the file, with the model's own tensors on both sides."""
        ports = self.manifest.ports
        return from_file(ports, self.model.run(to_file(ports, arrays)))

    def _load(self) -> FlatModel:
        return FlatModel((self.path / MODEL_FILE).read_bytes())

    def _check(
        self, model: FlatModel, simulation: Simulation, flat: Sequence[torch.Tensor]
    ) -> tuple[list[Agreement], dict[str, str]]:
        pieces = cut_pieces(self.manifest.inputs, self.shapes, list(flat))
        return check_layers(model, simulation.module, self.manifest.layers, pieces)
