"""The contract between the product and a runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from advisor.targets.capability import Capability

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from advisor.passes.graph import QuantizedGraph
    from advisor.targets.benchmark import Benchmark, Progress

Part = tuple[str, str]
"""(kind, name) of what takes a share of a model's time: see ``Timing.parts``."""

REST: Final[Part] = ("rest", "")
"""Everything that is neither a layer nor a conversion."""


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
    tensors that differ by one step, over all compared. notes: what else was found and is no
    mismatch, such as what an accelerator would leave to the processor. ok: no mismatch.
    """

    layers_matched: int
    layers_total: int
    mismatches: tuple[Mismatch, ...]
    max_abs_error: float
    executed_by: str
    flips: int = 0
    compared: int = 0
    notes: tuple[str, ...] = ()

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long one model takes on this machine.

    seconds: of one forward, without a profiler. noise: relative difference that a repetition is
    expected to show. parts: shares of ``seconds`` by (kind, name), kind one of "layer",
    "quantize", "dequantize" (of a tensor) and "rest"; they add up to ``seconds``. Empty when not
    asked for. partitions: parts of the model that the runtime hands to a delegate; None where it
    has none.
    """

    seconds: float
    noise: float
    parts: Mapping[Part, float]
    partitions: int | None = None


@runtime_checkable
class Stopwatch(Protocol):
    """What a target offers besides when it can run models on this very machine."""

    def time_models(
        self,
        builders: Sequence[Callable[[], QuantizedGraph]],
        inputs: Sequence[Any],
        *,
        threads: int | None,
        limit_s: float,
        with_parts: bool,
        say: Callable[[int, int], None],
    ) -> tuple[Timing, ...]:
        """Time the models that ``builders`` make, in turns.

        inputs: one value per placeholder of the graph, at the deployment batch. limit_s: how long
        all of it may take, roughly. with_parts: fill ``Timing.parts``. say: called with the number
        of models made ready and of all.

        Raises:
            MissingDependencyError: the runtime is not installed.
        """
        ...

    def machine(self) -> Mapping[str, str]:
        """What decides the speed besides the model: runtime version, processor, its features.

        Raises:
            MissingDependencyError: the runtime is not installed.
        """
        ...


@runtime_checkable
class Configurable(Protocol):
    """What a target offers besides when its files can be written in more ways than one.

    options: a frozen dataclass; see ``advisor.targets.options``.
    """

    @property
    def options(self) -> Any:
        """How this target writes its files."""
        ...

    def with_options(self, options: Any) -> Target:
        """The target that writes its files so."""
        ...


@runtime_checkable
class PlatformAware(Protocol):
    """What a configurable target offers besides when its files depend on the systems they are
    for."""

    def options_for(self, platform: Mapping[str, str]) -> Mapping[str, str]:
        """Options that a profile's platform decides, such as the oldest system to run on."""
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
