"""LiteRT (TFLite) with XNNPACK: one flatbuffer that holds the plan's integers as they are.

Importing this package loads neither torch nor LiteRT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from advisor.targets.builtin import BuiltIn
from advisor.targets.tflite.options import DEFAULTS, TfliteOptions

if TYPE_CHECKING:
    from advisor.passes.graph import QuantizedGraph
    from advisor.targets.base import Timing
    from advisor.targets.tflite.artifact import TfliteArtifact

__all__ = ["TARGET", "TfliteOptions", "TfliteTarget"]

PACKAGES: Final = ("litert_torch", "ai_edge_litert", "safetensors")


@dataclass(slots=True)
class TfliteTarget(BuiltIn):
    """Lowers quantized graphs to TFLite, reads them back, and runs them."""

    NAME: ClassVar = "tflite"

    options: TfliteOptions = DEFAULTS

    def with_options(self, options: TfliteOptions) -> TfliteTarget:
        """The target that writes its files so."""
        return TfliteTarget(options=options)

    def emit(self, graph: QuantizedGraph, out: Path) -> TfliteArtifact:
        """Write the artifact into the existing, empty folder ``out``.

        Raises:
            MissingDependencyError: a package is missing; says how to install it.
            InputError: the model does not accept the deployment's batch or sequence.
            UnsupportedError: an operator or a layer has a form that TFLite does not have, or the
                plan leaves an input or output in float that should be integers.
        """
        from advisor.targets.tflite.packages import require

        require(*PACKAGES)
        from advisor.targets.tflite.emit import write_artifact

        write_artifact(graph, out, self.options)
        return self.load(out)

    def load(self, folder: Path) -> TfliteArtifact:
        """The artifact that ``emit`` wrote.

        Raises:
            PlanError: the folder holds no artifact, or a corrupt one.
        """
        from advisor.targets.tflite.artifact import TfliteArtifact

        return TfliteArtifact.load(folder)

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
        """Time the models that ``builders`` make, in turns; see ``advisor.targets.base.Stopwatch``.

        Raises:
            MissingDependencyError: a package is missing; says how to install it.
            UnsupportedError: an operator or a layer has a form that TFLite does not have.
        """
        from advisor.targets.tflite.packages import require

        require(*PACKAGES)
        from advisor.targets.tflite.timing import time_models

        return time_models(
            builders,
            inputs,
            threads=threads,
            limit_s=limit_s,
            with_parts=with_parts,
            say=say,
        )

    def machine(self) -> Mapping[str, str]:
        """Runtime version, processor and its instruction sets.

        Raises:
            MissingDependencyError: a package is missing; says how to install it.
        """
        from advisor.targets.machine import describe_machine
        from advisor.targets.tflite.interpreter import runtime_version
        from advisor.targets.tflite.packages import require

        require(*PACKAGES)
        return describe_machine(runtime_version())


TARGET = TfliteTarget()
