"""LiteRT interpreters with XNNPACK, as an artifact is checked and should be opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import numpy as np

from advisor.targets.tflite.packages import load, require

DELEGATE: Final = "DELEGATE"

Array = np.ndarray[Any, Any]


def runtime_version() -> str:
    """Name and version of the runtime.

    Raises:
        MissingDependencyError: ai-edge-litert is not installed.
    """
    require("ai_edge_litert")
    return f"LiteRT {version('ai-edge-litert')} with XNNPACK"


@dataclass(frozen=True, slots=True)
class Partitions:
    """How the runtime splits the model. delegated: parts that XNNPACK runs. operators: those that
    it leaves to the built-in kernels."""

    delegated: int
    operators: tuple[str, ...]


class LiteModel:
    """One model, open. Threads: None is the runtime's own choice, which is one."""

    def __init__(self, content: bytes, threads: int | None = None) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it says which delegate it made
        make = load("ai_edge_litert.interpreter").Interpreter
        self._interpreter: Any = make(model_content=content, num_threads=threads)
        self._interpreter.allocate_tensors()
        self._inputs: list[dict[str, Any]] = self._interpreter.get_input_details()
        self._outputs: list[dict[str, Any]] = self._interpreter.get_output_details()

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs in order for inputs in order; integers take the width of the file's."""
        for details, array in zip(self._inputs, inputs, strict=True):
            cast = np.ascontiguousarray(array, dtype=details["dtype"])
            self._interpreter.set_tensor(details["index"], cast)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(details["index"]) for details in self._outputs]

    def again(self) -> None:
        """Run once more on the last inputs; the outputs stay inside."""
        self._interpreter.invoke()

    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the inputs in order."""
        return [tuple(int(size) for size in details["shape"]) for details in self._inputs]

    def partitions(self) -> Partitions:
        """What XNNPACK runs and what it does not."""
        nodes = self._nodes()
        parts = [node for node in nodes if node["op_name"] == DELEGATE]
        plain = _left_out(nodes)
        return Partitions(delegated=len(parts), operators=tuple(node["op_name"] for node in plain))

    def kernel(self) -> str:
        """What computes the first output: "XNNPACK" or the name of a built-in operator."""
        wanted = self._outputs[0]["index"]
        makers = [node["op_name"] for node in self._nodes() if wanted in node["outputs"]]
        return "XNNPACK" if DELEGATE in makers else "".join(makers[:1])

    def _nodes(self) -> list[Mapping[str, Any]]:
        # The only way to see the delegate's parts; without it nothing but their number is lost.
        return list(self._interpreter._get_ops_details())


def _left_out(nodes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The operators that no part of the delegate computes.

    The runtime lists those that the delegate took over as well. What a part takes over is what
    lies between what it reads and what it writes.
    """
    parts = [node for node in nodes if node["op_name"] == DELEGATE]
    operators = [node for node in nodes if node["op_name"] != DELEGATE]
    makers = {int(out): index for index, node in enumerate(operators) for out in node["outputs"]}
    taken: set[int] = set()
    for part in parts:
        stops = {int(i) for i in part["inputs"]}
        pending = [int(out) for out in part["outputs"]]
        while pending:
            tensor = pending.pop()
            index = makers.get(tensor)
            if index is None or index in taken or tensor in stops:
                continue
            taken.add(index)
            pending += [int(i) for i in operators[index]["inputs"]]
    return [node for index, node in enumerate(operators) if index not in taken]
