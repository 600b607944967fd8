"""Core AI's runtime, which executes packages on Linux and macOS alike."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any, Final

import numpy as np

from advisor.streams import STDERR, withheld_lines
from advisor.targets.coreai.packages import load

Array = np.ndarray[Any, Any]

SYSTEMS: Final = {"Darwin": "macOS"}
"""Systems that Python names otherwise than people do."""

CHATTER: Final = "ODIE"
"""How the lines begin that the runtime writes to standard error for every function it loads."""


def runtime_name() -> str:
    """What executes: package, version and system."""
    system = platform.system()
    return f"Core AI (coreai-core {version('coreai-core')}) on {SYSTEMS.get(system, system)}"


class Session:
    """A package made ready to run."""

    def __init__(self, asset: Any) -> None:
        self._model = _wait(_open(asset))
        self._functions: dict[str, Any] = {}

    def run(self, function: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, for arrays by the function's own input names."""
        if function not in self._functions:
            with withheld_lines(CHATTER, STDERR):
                self._functions[function] = self._model.load_function(function)
        make = load("coreai.runtime").NDArray
        feeds = {name: make(np.ascontiguousarray(array)) for name, array in arrays.items()}
        found = _wait(self._functions[function](feeds))
        return {name: np.array(value.numpy()) for name, value in found.items()}


async def _open(asset: Any) -> Any:
    """The model: it keeps what it needs of the folder that goes when the block ends."""
    async with asset.executable() as model:
        return model


def _wait(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine, in a thread of its own: the caller may have an event loop
    already, as notebooks do."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
