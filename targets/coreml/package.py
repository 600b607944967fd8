"""A saved Core ML package, read back: its operators, names and version."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from advisor.errors import PlanError
from advisor.targets.coreml.mil import Evaluator
from advisor.targets.coreml.names import inputs_of, is_named, names_of, read_names
from advisor.targets.coreml.packages import load
from advisor.targets.packages import quiet
from advisor.targets.parts import STEP, Names

PACKAGE: Final = "model.mlpackage"
FUNCTION: Final = "main"

NO_LAYERS: Final = frozenset({"const", "cast", "reshape"})
"""Operators around a layer that carry its name too."""


@dataclass(slots=True, kw_only=True)
class Package:
    """What a package holds. version: of its specification. names: see ``names``. description: of
    its inputs and outputs, as its specification has it."""

    evaluator: Evaluator
    names: Names
    version: int
    description: Any

    def find(self, name: str) -> Any | None:
        """The operator of that name; a later step of it where the first was computed ahead."""
        layers = [op for op in self.evaluator.operations if op.op_type not in NO_LAYERS]
        for op in layers:
            if is_named(op, name):
                return op
        for op in layers:
            if any(each.startswith(f"{name}{STEP}") for each in names_of(op)):
                return op
        return None

    def readers(self, name: str) -> list[Any]:
        """The operators that read a constant of that name, whatever coremltools appended to it."""
        return [
            op
            for op in self.evaluator.operations
            if any(_is_constant(var, name) for var in inputs_of(op))
        ]


def _is_constant(var: Any, name: str) -> bool:
    return bool(var.op is not None and var.op.op_type == "const") and (
        var.name == name or var.name.startswith(f"{name}_to_")
    )


def read_package(path: Path) -> Package:
    """Read a package without loading it into a runtime, on any system.

    Raises:
        PlanError: missing or damaged.
        MissingDependencyError: coremltools is not installed.
    """
    ct = load("coremltools")
    parser = load("coremltools.converters.mil.frontend.milproto.load")
    try:
        with quiet():
            model = ct.models.MLModel(str(path), skip_model_load=True)
            spec = model.get_spec()
            program = parser.load(
                spec,
                specification_version=spec.specificationVersion,
                file_weights_dir=model.weights_dir,
            )
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise PlanError(f"{path} cannot be read ({error}); compile the plan again") from error
    return Package(
        evaluator=Evaluator(program.functions[FUNCTION]),
        names=read_names(dict(spec.description.metadata.userDefined)),
        version=int(spec.specificationVersion),
        description=spec.description,
    )
