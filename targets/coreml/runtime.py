"""What executes a package: Core ML on a Mac, the evaluator of this package elsewhere."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch

from advisor import __version__
from advisor.errors import MissingDependencyError, UnsupportedError
from advisor.targets.coreml.deployment import describe, for_platform
from advisor.targets.coreml.emit import Settings
from advisor.targets.coreml.labels import SCORES
from advisor.targets.coreml.package import PACKAGE, Package
from advisor.targets.coreml.packages import load
from advisor.targets.packages import quiet
from advisor.targets.platforms import shortfall

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
        if ON_MAC:
            check_system(settings.deployment, platform.mac_ver()[0])
        ct = load("coremltools")
        with quiet():
            self._model = ct.models.MLModel(str(folder / PACKAGE))
        self._settings = settings
        ports = settings.ports
        self._pictures = {ports.inputs[name]: each for name, each in settings.images.items()}
        self.name = f"Core ML on macOS {platform.mac_ver()[0]}"

    def run(self, arrays: Mapping[str, Array]) -> list[Array]:
        """The outputs in order, for arrays by the package's own input names."""
        found = self._model.predict(
            {
                name: picture_of(array, self._pictures[name].color)
                if name in self._pictures
                else array
                for name, array in arrays.items()
            }
        )
        labels = self._settings.labels
        if labels:
            scores = found[SCORES]
            return [np.asarray([[scores[label] for label in labels]], dtype=np.float32)]
        return [np.asarray(found[name]) for name in self._settings.ports.outputs.values()]


def check_system(deployment: str, macos: str) -> None:
    """Refuse to open a package on a system that is too old for it. macos: a version, "15.1".

    Raises:
        UnsupportedError: names both, and what to compile for.
    """
    short = shortfall(deployment, {"macos": macos})
    if short:
        raise UnsupportedError(
            f"the package needs {describe(deployment)}, this Mac has macOS {macos}; compile with "
            f"options={{'deployment': {for_platform({'macos': macos})!r}}}"
        )


def picture_of(pixels: Array, color: str) -> Any:
    """uint8 (1, channels, height, width) as the picture that Core ML takes: a PIL image.

    color: order of the channels. Core ML takes a picture in any order and gives the model its own.

    Raises:
        MissingDependencyError: Pillow is not installed.
    """
    if importlib.util.find_spec("PIL") is None:
        raise MissingDependencyError(
            "Core ML takes pictures from Pillow, which is not installed here; run: pip install "
            "pillow"
        )
    image: Any = importlib.import_module("PIL.Image")
    if color == "GRAYSCALE":
        return image.fromarray(np.ascontiguousarray(pixels[0, 0]))
    rgb = pixels[0] if color == "RGB" else pixels[0, ::-1]
    return image.fromarray(np.ascontiguousarray(rgb.transpose(1, 2, 0)))


def open_runner(folder: Path, settings: Settings, package: Package) -> Runner:
    """What executes the package in ``folder`` here."""
    return CoremlRunner(folder, settings) if ON_MAC else EvaluatorRunner(package)
