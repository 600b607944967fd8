"""The TensorRT artifact: check it without a GPU, find where it goes wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

import numpy as np
import torch

from advisor.errors import MissingDependencyError, PlanError
from advisor.targets.acceptance import verify_all, write_acceptance
from advisor.targets.agreement import Agreement, compare_outputs, describe_agreements, run_shaken
from advisor.targets.base import LayerFormat, Mismatch, Verification
from advisor.targets.compare import any_kernel, compare_layers, compare_tensors
from advisor.targets.manifest import (
    CHECK_FOLDER,
    LayerRecord,
    Manifest,
    read_manifest,
    write_json,
)
from advisor.targets.onnxruntime.onnxfile import load_model
from advisor.targets.signature import feed_of, run_called
from advisor.targets.simulation import (
    Simulation,
    inputs_or_examples,
    load_simulation,
)
from advisor.targets.tensorrt.agreement import check_layers, rounding_noise
from advisor.targets.tensorrt.build_engine import BACKENDS, build
from advisor.targets.tensorrt.compiler import Compiled, compile_model
from advisor.targets.tensorrt.device import GpuCheck, find_backend, run_engine
from advisor.targets.tensorrt.emit import MODEL_FILE, read_options
from advisor.targets.tensorrt.engine import acceptable_kernels, kernels_by_layer
from advisor.targets.tensorrt.lint import lint
from advisor.targets.tensorrt.options import ComputeCapability, TensorrtOptions
from advisor.targets.tensorrt.readback import find_inputless, read_layers, read_tensors
from advisor.targets.tensorrt.reference import Reference, open_reference
from advisor.targets.tensorrt.shapes import read_ranges

if TYPE_CHECKING:
    import onnx_ir as ir

    from advisor.targets.benchmark import Benchmark, Progress

INPUTLESS: Final = "none: its result is the same for all inputs"
"""In place of the kernel of a layer that the compiler may compute while it builds."""

_PACKAGES: Final = ("onnxruntime", "onnx", "torch")


@dataclass(slots=True, kw_only=True, eq=False)
class TensorrtArtifact:
    """A folder with model.onnx, profile.json, build_engine.py and what to check it against.

    options: how it was written.
    """

    path: Path
    manifest: Manifest
    options: TensorrtOptions
    _reference: Reference | None = None

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The artifact that ``plan.compile`` wrote into ``folder``.

        Raises:
            PlanError: the folder holds no artifact, or a corrupt one.
        """
        path = Path(folder)
        return cls(path=path, manifest=read_manifest(path), options=read_options(path))

    def run(self, *inputs: Any, **named: Any) -> Any:
        """Execute the file's operators one by one in ONNX Runtime on the CPU, none fused.

        It gives the numbers of the file, at no speed worth measuring. Takes what the model takes
        and returns its structure; torch tensors give torch tensors, numpy arrays numpy arrays.

        Raises:
            InputError: an input is missing, unknown, or of another shape or dtype.
            MissingDependencyError: onnxruntime is not installed.
        """
        return run_called(self, inputs, named)

    def run_flat(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """Execute on arrays by input name; the outputs in order."""
        if self._reference is None:
            self._reference = open_reference(self._load())
        return self._reference.run([record.name for record in self.manifest.outputs], arrays)

    def read_back(self) -> dict[str, LayerFormat]:
        """The format of every layer from the file, with what its compiled kernel reads.

        Kernels are left empty where TensorRT-RTX is not installed.
        """
        return self._read_formats(self._load(), self.compile())

    def compile(self) -> Compiled:
        """Compile with TensorRT-RTX for the GPU of ``options``, as profile.json says.

        Raises:
            PlanError: profile.json is damaged, or a dynamic dimension has no range in it.
        """
        ranges = read_ranges(self.path, self.manifest.inputs)
        tf32 = self.options.tf32 == "on"
        return compile_model(self.path / MODEL_FILE, ranges, sm=self.options.sm, tf32=tf32)

    def verify(self, simulation: Simulation | None = None) -> Verification:
        """Read back every layer from the file and from the compiler, hold the file against
        TensorRT's rules, run each layer alone and the whole, compare with the simulation.

        Writes acceptance.json with every number. Where TensorRT-RTX is not installed nothing is
        compiled, and the notes say so. simulation: what to compare with where the artifact was
        written without it.

        Raises:
            PlanError: the files to check against are missing, or profile.json has no range for a
                dynamic dimension.
            MissingDependencyError: onnxruntime is not installed.
        """
        model, compiled = self._load(), self.compile()
        formats = self._read_formats(model, compiled)
        mismatches = self._compare(model, formats, compiled)
        reference = open_reference(model)
        simulation = simulation or load_simulation(self.path / CHECK_FOLDER)
        flat = inputs_or_examples(self.manifest, simulation, (), {})
        agreements = self._check(reference.model, simulation, flat)
        names = [record.name for record in self.manifest.outputs]
        found = reference.run(names, feed_of(self.manifest, flat))
        worst, outside = self._compare_whole(simulation, flat, found)
        verification = verify_all(
            self.manifest,
            agreements,
            (*mismatches, *outside),
            max_abs_error=worst,
            executed_by=reference.executed_by,
            notes=(compiled.note,),
        )
        write_acceptance(
            self.path,
            self.manifest,
            verification,
            formats,
            agreements,
            packages=_PACKAGES,
            compiled=_summary(compiled),
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
        reference = open_reference(self._load())
        return describe_agreements(self._check(reference.model, simulation, flat))

    def benchmark(
        self,
        *,
        batch: int | None = None,
        sequence: int | None = None,
        threads: int | None = None,
        seconds: float | None = None,
        progress: Progress | None = None,
    ) -> Benchmark:
        """Not possible from here: engines run on an NVIDIA GPU alone.

        Raises:
            MissingDependencyError: always; says how to time the engine where it runs.
        """
        _refuse_timing(self.path)

    def mismatches_on(self, sm: ComputeCapability) -> list[Mismatch]:
        """What the file's formats and the kernels of another GPU have that the plan has not.

        sm: its compute capability, one of those that the option has. The numbers of the file are
        the same everywhere; ``verify`` checks them.

        Raises:
            PlanError: profile.json is damaged, or a dynamic dimension has no range in it.
        """
        other = replace(self, options=replace(self.options, sm=sm))
        model, compiled = other._load(), other.compile()
        return other._compare(model, other._read_formats(model, compiled), compiled)

    def check_on_gpu(self) -> GpuCheck:
        """Build the engine for this machine's GPU, run it on the check inputs, hold the outputs
        against the simulation, and time the whole and every kernel.

        Writes gpu.json. With TensorRT where it is installed, else with TensorRT-RTX.

        Raises:
            MissingDependencyError: no GPU, or neither package.
            PlanError: the engine cannot be built or run; profile.json has no range that fits; the
                files to check against are missing.
        """
        backend = find_backend()
        built = build(
            self.path / MODEL_FILE,
            read_ranges(self.path, self.manifest.inputs),
            backend=backend,
            tf32=self.options.tf32 == "on",
            cache=self.path / "timing.cache",
        )
        if built.engine is None:
            raise PlanError(f"{BACKENDS[backend]} built no engine: {'; '.join(built.problems)}")
        simulation = load_simulation(self.path / CHECK_FOLDER)
        flat = inputs_or_examples(self.manifest, simulation, (), {})
        names = [record.name for record in self.manifest.outputs]
        feeds = feed_of(self.manifest, flat)
        run = run_engine(built.engine, feeds, names, self.manifest.layers, backend=backend)
        worst, outside = self._compare_whole(simulation, flat, run.outputs)
        check = GpuCheck(
            gpu=run.gpu,
            by=run.by,
            latency_s=run.latency_s,
            kernels=run.kernels,
            max_abs_error=worst,
            mismatches=tuple(outside),
        )
        write_json(self.path / "gpu.json", asdict(check))
        return check

    def _compare(
        self, model: ir.Model, formats: Mapping[str, LayerFormat], compiled: Compiled
    ) -> list[Mismatch]:
        """The file and its kernels against the plan and TensorRT's rules."""
        is_built = compiled.by and not compiled.problems
        inputless = {name for name, found in formats.items() if found.kernel == INPUTLESS}

        def kernels(layer: LayerRecord) -> frozenset[str]:
            known = is_built and layer.name not in inputless
            return acceptable_kernels(layer) if known else any_kernel(layer)

        return [
            *compare_layers(self.manifest.layers, formats, kernels),
            *compare_tensors(
                self.manifest.tensors,
                read_tensors(model, [record.name for record in self.manifest.tensors]),
            ),
            *(
                Mismatch(name=found.name, expected=found.rule, found=found.problem)
                for found in lint(model, sm=self.options.sm)
            ),
            *(
                Mismatch(name=MODEL_FILE, expected=f"accepted by {compiled.by}", found=problem)
                for problem in compiled.problems
            ),
            *(
                Mismatch(name=MODEL_FILE, expected=f"every kernel of {compiled.by}", found=found)
                for found in (compiled.unread,)
                if found
            ),
        ]

    def _compare_whole(
        self,
        simulation: Simulation,
        flat: Sequence[torch.Tensor],
        found: Sequence[np.ndarray[Any, Any]],
    ) -> tuple[float, list[Mismatch]]:
        """All outputs against the simulation's, narrow floats rounded where they are."""
        names = [record.name for record in self.manifest.outputs]
        shake = partial(run_shaken, noise=rounding_noise(self.manifest.layers))
        return compare_outputs(simulation, flat, names, found, shake)

    def _read_formats(self, model: ir.Model, compiled: Compiled) -> dict[str, LayerFormat]:
        kernels = kernels_by_layer(compiled.kernels, self.manifest.layers)
        if compiled.by:
            inputless = find_inputless(model, self.manifest.layers)
            kernels |= dict.fromkeys(inputless, INPUTLESS)
        return {
            name: replace(found, kernel=kernels.get(name, ""))
            for name, found in read_layers(model, self.manifest.layers).items()
        }

    def _load(self) -> ir.Model:
        return load_model(self.path / MODEL_FILE)

    def _check(
        self, model: ir.Model, simulation: Simulation, flat: Sequence[torch.Tensor]
    ) -> list[Agreement]:
        return check_layers(model, simulation.module, self.manifest.layers, flat)


def _summary(compiled: Compiled) -> dict[str, Any]:
    """What acceptance.json keeps of a compile; the kernels by layer are in its rows."""
    kept = asdict(replace(compiled, kernels=()))
    return {**kept, "kernels": len(compiled.kernels), "note": compiled.note}


def _refuse_timing(path: Path) -> NoReturn:
    raise MissingDependencyError(
        "an engine runs on an NVIDIA GPU alone, beside no other file; on the machine with the GPU "
        "and TensorRT, artifact.check_on_gpu() times it and every kernel, or run: "
        f"sh {path}/trtexec.sh --dumpProfile --separateProfileRun"
    )
