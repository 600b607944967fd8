"""The ONNX Runtime artifact: run it, verify it, find where it goes wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import torch

from advisor.doctor import read_cpu
from advisor.targets.acceptance import verify_all, write_acceptance
from advisor.targets.agreement import Agreement, compare_outputs, describe_agreements
from advisor.targets.base import LayerFormat, Mismatch, Verification
from advisor.targets.benchmark import Benchmark, Progress
from advisor.targets.capability import PRODUCT_SCHEME
from advisor.targets.compare import compare_layers, compare_tensors
from advisor.targets.manifest import CHECK_FOLDER, LayerRecord, Manifest, read_manifest
from advisor.targets.onnxruntime.agreement import check_layers, rounds_states
from advisor.targets.onnxruntime.benchmark import (
    ROUNDS,
    SECONDS,
    run_benchmark,
)
from advisor.targets.onnxruntime.kernels import (
    acceptable_kernels,
    executed_kernels,
    find_rounded,
    with_kernels,
)
from advisor.targets.onnxruntime.manifest import MODEL_FILE, read_session_entries
from advisor.targets.onnxruntime.onnxfile import load_model, sizes_of
from advisor.targets.onnxruntime.readback import read_layers, read_tensors
from advisor.targets.onnxruntime.session import Session, open_session, runtime_version
from advisor.targets.signature import run_called
from advisor.targets.simulation import (
    Simulation,
    inputs_or_examples,
    load_examples,
    load_simulation,
)

if TYPE_CHECKING:
    import onnx_ir as ir

_PACKAGES: Final = ("onnxruntime", "onnx", "torch")


@dataclass(slots=True, kw_only=True, eq=False)
class OnnxRuntimeArtifact:
    """A folder with model.onnx, session.json, artifact.json and what to check it against.

    threads: of one operator, or None for ONNX Runtime's own choice.
    """

    path: Path
    manifest: Manifest
    threads: int | None = None
    _session: Session | None = None

    @classmethod
    def load(cls, folder: str | Path, *, threads: int | None = None) -> Self:
        """The artifact that ``plan.compile`` wrote into ``folder``.

        Raises:
            PlanError: the folder holds no artifact, or a corrupt one.
        """
        path = Path(folder)
        return cls(path=path, manifest=read_manifest(path), threads=threads)

    @property
    def session(self) -> Session:
        """The onnxruntime.InferenceSession, opened at the first use as session.json says."""
        if self._session is None:
            self._session = open_session(
                self.path / MODEL_FILE, read_session_entries(self.path), threads=self.threads
            )
        return self._session

    def run(self, *inputs: Any, **named: Any) -> Any:
        """Execute. Takes what the model takes and returns its structure.

        Torch tensors give torch tensors, numpy arrays numpy arrays; a ModelOutput is a dict.

        Raises:
            InputError: an input is missing, unknown, or of another shape or dtype.
            MissingDependencyError: onnxruntime is not installed.
        """
        return run_called(self, inputs, named)

    def run_flat(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """Execute on arrays by input name; the outputs in order."""
        names = [record.name for record in self.manifest.outputs]
        return [np.asarray(result) for result in self.session.run(names, dict(arrays))]

    def read_back(self) -> dict[str, LayerFormat]:
        """The format of every layer from the file, with the operator that really runs it."""
        kernels = self._kernels({})  # the session first: it says what is wrong with a file
        return with_kernels(read_layers(self._load(), self.manifest.layers), kernels)

    def verify(self) -> Verification:
        """Read back every layer, run it alone and in the whole, compare with the simulation.

        Writes acceptance.json with every number.

        Raises:
            PlanError: the files to check against are missing.
            MissingDependencyError: onnxruntime is not installed.
        """
        # One after the other: each holds the weights, and a model may just fit into memory.
        formats = self.read_back()
        found = self._run_examples()
        simulation = load_simulation(self.path / CHECK_FOLDER)
        mismatches = self._compare(formats)
        if sizes := sizes_of(self._load(), load_examples(self.path / CHECK_FOLDER)):
            # Sessions with fixed sizes fuse more, and are what is timed.
            mismatches += [
                replace(each, found=f"{each.found} where sizes are fixed")
                for each in self._compare(with_kernels(formats, self._kernels(sizes)))
                if each not in mismatches
            ]
        mismatches += compare_tensors(
            self.manifest.tensors,
            read_tensors(self._load(), [record.name for record in self.manifest.tensors]),
        )
        flat = inputs_or_examples(self.manifest, simulation, (), {})
        agreements = self._check(simulation, flat)
        names = [record.name for record in self.manifest.outputs]
        worst, outside = compare_outputs(simulation, flat, names, found)
        verification = verify_all(
            self.manifest,
            agreements,
            (*mismatches, *outside),
            max_abs_error=worst,
            executed_by=runtime_version(),
            notes=_overflowing(self.manifest.layers),
        )
        write_acceptance(
            self.path, self.manifest, verification, formats, agreements, packages=_PACKAGES
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
        rounds: int = ROUNDS,
        seconds: float | None = None,
        progress: Progress | None = None,
    ) -> Benchmark:
        """Latency, throughput and memory of the float model and of the plan, side by side.

        See ``run_benchmark`` for what is taken where nothing is given.

        Raises:
            InputError: the model is fixed at another batch or sequence.
            PlanError: the files to compare with are missing.
            UsageError: too few rounds, or no time.
            MissingDependencyError: onnxruntime is not installed.
        """
        return run_benchmark(
            self.path,
            self.manifest,
            batch=batch,
            sequence=sequence,
            threads=self.threads if threads is None else threads,
            rounds=rounds,
            seconds=SECONDS if seconds is None else seconds,
            progress=progress,
        )

    def _kernels(self, sizes: Mapping[str, int]) -> dict[str, str]:
        """The operator that runs each layer. sizes: of dynamic dimensions to fix."""
        return executed_kernels(
            self.path / MODEL_FILE,
            self.manifest.layers,
            read_session_entries(self.path),
            dimensions=sizes,
        )

    def _compare(self, formats: Mapping[str, LayerFormat]) -> list[Mismatch]:
        return [
            *compare_layers(self.manifest.layers, formats, acceptable_kernels),
            *find_rounded(self.manifest.layers, formats),
        ]

    def _load(self) -> ir.Model:
        return load_model(self.path / MODEL_FILE)

    def _check(self, simulation: Simulation, flat: Sequence[torch.Tensor]) -> list[Agreement]:
        return check_layers(
            self._load(),
            simulation.module,
            self.manifest.layers,
            flat,
            read_session_entries(self.path),
        )

    def _run_examples(self) -> list[np.ndarray[Any, Any]]:
        """The outputs for the examples, of a session that is closed again."""
        examples = load_examples(self.path / CHECK_FOLDER)
        # Whoever rounds the states of a batch together does so per thread: the simulation has one.
        threads = 1 if self._rounds_states else self.threads
        alone = replace(self, threads=threads, _session=None)
        return alone.run_flat(
            {record.name: examples[record.name] for record in self.manifest.inputs}
        )

    @property
    def _rounds_states(self) -> bool:
        return any(rounds_states(layer) for layer in self.manifest.layers)


def _overflowing(layers: Sequence[LayerRecord]) -> tuple[str, ...]:
    """What to know of layers whose integers this processor cannot add exactly."""
    count = sum(layer.scheme == PRODUCT_SCHEME for layer in layers)
    if not count or not read_cpu().lacks_vnni:
        return ()
    return (
        f"{count} {PRODUCT_SCHEME} layers: this processor has no VNNI, and adds products of two "
        "quantized activations in 16 bits, which overflow; verify on one that has it",
    )
