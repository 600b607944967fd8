"""The contract between the product and a runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from advisor.targets.capability import Capability

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from advisor.passes.graph import QuantizedGraph
    from advisor.targets.benchmark import Benchmark, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFormat:
    """The precision of one layer as read back from an artifact.

    scheme: the scheme whose formats were found. weight_sha256: over the stored integers (int8,
    unpacked, torch layout) and scales (float32), so that equality means equality of every number.
    kernel: the operator that the runtime really executes, empty when it does not say.
    """

    scheme: str
    weight_sha256: str
    kernel: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """One layer, tensor or output of the artifact that is not what the plan says."""

    name: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The outcome of ``Artifact.verify``.

    max_abs_error: largest absolute difference of any output, artifact against simulation, end to
    end. executed_by: the runtime and version that ran it. flips: integers of statically quantized
    tensors that differ by one step, over all compared. ok: no mismatch.
    """

    layers_matched: int
    layers_total: int
    mismatches: tuple[Mismatch, ...]
    max_abs_error: float
    executed_by: str
    flips: int = 0
    compared: int = 0

    @property
    def ok(self) -> bool:
        """True when every layer and every number agrees."""
        return not self.mismatches and self.layers_matched == self.layers_total


@runtime_checkable
class Artifact(Protocol):
    """Files of one runtime, ready to ship, and the means to check them."""

    @property
    def path(self) -> Path:
        """The folder that holds the files."""
        ...

    @staticmethod
    def load(folder: str | Path) -> Artifact:
        """The artifact that ``plan.compile`` wrote, of whichever runtime.

        Raises:
            PlanError: the folder holds no artifact, or a corrupt one.
            MissingDependencyError: its runtime is not installed here.
        """
        from pathlib import Path

        from advisor.planfile import read_plan
        from advisor.targets.registry import target_named

        return target_named(read_plan(folder).runtime).load(Path(folder))

    def run(self, *inputs: Any, **named: Any) -> Any:
        """Outputs of the runtime, in the structure of the model's own outputs."""
        ...

    def verify(self) -> Verification:
        """Read back every layer, execute, and compare with the simulation."""
        ...

    def debug(self, *inputs: Any, **named: Any) -> str:
        """The first layer whose output leaves the simulation, and by how much."""
        ...

    def benchmark(
        self,
        *,
        batch: int | None = None,
        sequence: int | None = None,
        threads: int | None = None,
        seconds: float | None = None,
        progress: Progress | None = None,
    ) -> Benchmark:
        """Latency, throughput and memory of the float model and of the plan, on this machine.

        batch, sequence, threads: None takes what the plan was made for. seconds: to spend on
        timing; None is the target's default.

        Raises:
            InputError: the model is fixed at another batch or sequence.
            PlanError: the files to compare with are missing.
            MissingDependencyError: the runtime is not installed here.
        """
        ...


class Target(Protocol):
    """What a runtime must offer; others register theirs as ``advisor.targets`` entry points."""

    capability: Capability

    def emit(self, graph: QuantizedGraph, out: Path) -> Artifact:
        """Write the artifact into the existing, empty folder ``out``."""
        ...

    def load(self, folder: Path) -> Artifact:
        """The artifact that ``emit`` wrote."""
        ...

    def read_back(self, artifact: Artifact) -> Mapping[str, LayerFormat]:
        """The precision of every layer, from the files alone."""
        ...

    def run(self, artifact: Artifact, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:
        """Execute with flat named inputs; flat named outputs."""
        ...
