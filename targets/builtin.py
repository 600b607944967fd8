"""What every target of this package does alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from advisor.targets.capability import Capability, load_capability

if TYPE_CHECKING:
    import torch

    from advisor.targets.base import Artifact, LayerFormat
    from advisor.targets.manifest import Manifest


class Readable(Protocol):
    """An artifact that can be executed and read back."""

    manifest: Manifest

    def run_flat(self, arrays: Mapping[str, Any]) -> Sequence[Any]:
        """Outputs in order for arrays by input name."""
        ...

    def read_back(self) -> Mapping[str, LayerFormat]:
        """The precision of every layer, from the files alone."""
        ...


class BuiltIn(ABC):
    """A target whose capability is the TOML file of its name."""

    __slots__ = ()

    NAME: ClassVar[str]

    @property
    def capability(self) -> Capability:
        """What the runtime supports, from its TOML file."""
        return load_capability(self.NAME)

    @abstractmethod
    def load(self, folder: Path) -> Readable:
        """The artifact that ``emit`` wrote.

        Raises:
            PlanError: the folder holds no artifact, or a corrupt one.
        """

    def read_back(self, artifact: Artifact) -> Mapping[str, LayerFormat]:
        """The precision of every layer, from the files alone."""
        return self.load(artifact.path).read_back()

    def run(self, artifact: Artifact, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:
        """Execute with flat named inputs; flat named outputs as torch tensors."""
        from advisor.targets.signature import run_named

        return run_named(self.load(artifact.path), inputs)
