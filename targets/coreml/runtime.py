"""What executes a package: Core ML on a Mac, the evaluator of this package elsewhere."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch

from advisor import __version__
from advisor.targets.coreml.emit import Settings
from advisor.targets.coreml.package import PACKAGE, Package
from advisor.targets.coreml.packages import load
from advisor.targets.packages import quiet

Array = np.ndarray[Any, Any]

ON_MAC: Final = sys.platform == "darwin"
"""Whether Core ML itself is here."""


class Runner(Protocol):
    """Something that executes a package."""

    name: str

    def run(self, arrays: Mapping[str, Array]) -> list[Array]:
        """The outputs in order, for arrays by the package's own input names."""
        ...


class EvaluatorRunner:
    """The MIL evaluator: what the operators are documented to compute, in torch."""

    def __init__(self, package: Package) -> None:
        self.name = f"MIL evaluator of quantadvisor {__version__} (torch {torch.__version__})"
        self._evaluator = package.evaluator

    def run(self, arrays: Mapping[str, Array]) -> list[Array]:
        """The outputs in order, for arrays by the package's own input names."""
        feeds = {name: torch.as_tensor(np.array(array)) for name, array in arrays.items()}
        return [value.numpy() for value in self._evaluator.run(feeds)]


class CoremlRunner:
    """Core ML itself. Written after its documentation; nothing of it has run for this project,
    which has no Mac."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        ct = load("coremltools")
        with quiet():
            self._model = ct.models.MLModel(str(folder / PACKAGE))
        self._outputs = list(settings.ports.outputs.values())
        self.name = f"Core ML on macOS {platform.mac_ver()[0]}"

    def run(self, arrays: Mapping[str, Array]) -> list[Array]:
        """The outputs in order, for arrays by the package's own input names."""
        found = self._model.predict(dict(arrays))
        return [np.asarray(found[name]) for name in self._outputs]


def open_runner(folder: Path, settings: Settings, package: Package) -> Runner:
    """What executes the package in ``folder`` here."""
    return CoremlRunner(folder, settings) if ON_MAC else EvaluatorRunner(package)
