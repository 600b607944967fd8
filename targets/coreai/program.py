"""A saved Core AI model, read back: its operators, what each was made from, and its constants."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from advisor.errors import PlanError
from advisor.targets.coreai.packages import load
from advisor.targets.packages import quiet
from advisor.targets.parts import STEP

PACKAGE: Final = "model.aimodel"
PROGRAM_FILE: Final = "main.mlirb"
HASH_FILE: Final = "main.hash"
FUNCTION: Final = "main"
CONSTANT: Final = "coreai.constant"

SOURCES: Final = re.compile(r"identifiers = \[([^\]]*)\]")
"""What of the model an operator was made from, as its location in the file says."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a package holds. asset: of Core AI, to be executed. program: its operators."""

    asset: Any
    program: Any

    @cached_property
    def operations(self) -> list[Any]:
        """The operators of the model, in order."""
        graph = self.program._get_graph(FUNCTION)
        return [op.operation for op in graph.bodyRegion.blocks[0].operations]

    @cached_property
    def _made_from(self) -> dict[str, list[Any]]:
        """The operators that are no constants, by name of what they were made from."""
        found: dict[str, list[Any]] = {}
        for op in self.operations:
            if op.name == CONSTANT:
                continue
            for names in SOURCES.findall(str(op.location)):
                for name in re.findall(r'"([^"]*)"', names):
                    found.setdefault(name, []).append(op)
        return found

    @cached_property
    def _fixed(self) -> set[Any]:
        """The values that depend on constants alone."""
        found: set[Any] = set()
        for op in self.operations:
            if all(value in found for value in op.operands):
                found.update(op.results)
        return found

    def is_fixed(self, value: Any) -> bool:
        """Whether a value depends on constants alone."""
        return value in self._fixed

    def find(self, name: str) -> list[Any]:
        """The operators that a node of that name became; those of a later step of it where the
        first was computed ahead."""
        steps = (ops for each, ops in self._made_from.items() if each.startswith(f"{name}{STEP}"))
        own = self._made_from.get(name, [])
        for ops in (own, *steps):
            if any(not self.is_fixed(result) for op in ops for result in op.results):
                return ops
        return own  # such as an embedding of positions that are always the same


def owner_of(value: Any) -> Any | None:
    """The operation that computes a value; None for an input of the model."""
    ir = load("coreai._compiler.ir")
    owner = value.owner
    return None if isinstance(owner, ir.Block) else owner.operation


def read_program(path: Path) -> Program:
    """Read a package without executing it.

    Raises:
        PlanError: missing or damaged.
        MissingDependencyError: Core AI is not installed, or does not exist for this system.
    """
    authoring = load("coreai.authoring")
    _check_hash(path)
    try:
        with quiet():
            asset = authoring.AIModelAsset.load(path)
            program = asset.program
    except (OSError, RuntimeError, ValueError) as error:
        raise PlanError(f"{path} cannot be read ({error}); compile the plan again") from error
    return Program(asset=asset, program=program)


def _check_hash(path: Path) -> None:
    """Compare the program with the hash that Core AI wrote beside it: its parser ends the whole
    process at bytes that it cannot read (measured, coreai-core 1.0.0b3)."""
    try:
        data = (path / PROGRAM_FILE).read_bytes()
        expected = (path / HASH_FILE).read_bytes()
    except OSError as error:
        raise PlanError(f"{path} cannot be read ({error}); compile the plan again") from error
    if hashlib.sha256(data).digest() != expected:
        raise PlanError(
            f"{path} is damaged: {PROGRAM_FILE} is not what {HASH_FILE} says; "
            "compile the plan again"
        )
