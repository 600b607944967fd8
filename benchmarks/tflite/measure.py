"""TFLite files as variants, and how they are opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, overload

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from advisor.passes.graph import QuantizedGraph
from advisor.targets.tflite.interpreter import LiteModel
from advisor.targets.tflite.timing import sizes_of
from advisor.targets.tflite.write import write_model
from benchmarks.measure import Array, Model
from benchmarks.models import Inputs

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@dataclass(frozen=True, slots=True, kw_only=True)
class TfliteVariant:
    """One model file."""

    name: str
    path: Path

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return sha256(self.path.read_bytes()).hexdigest()

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What LiteRT raises for a model it cannot open or execute."""
        return (RuntimeError, ValueError)

    def open(self, threads: int) -> Model:
        """An interpreter with XNNPACK, which LiteRT applies by itself."""
        return _Open(self.path.read_bytes(), threads)

    def describe(self) -> dict[str, Any]:
        """Partitions of XNNPACK, and how many operators it leaves to the built-in kernels."""
        found = LiteModel(self.path.read_bytes()).partitions()
        return {"partitions": found.delegated, "left_out": len(found.operators)}


class _Open:
    """Runs a file on arrays by name. Where its inputs are integers, what they are quantized to is
    kept, and its outputs are only turned into floats when they are looked at: a timed call has
    nothing of both in it."""

    def __init__(self, content: bytes, threads: int) -> None:
        self.interpreter: Any = Interpreter(model_content=content, num_threads=threads)
        self.interpreter.allocate_tensors()
        signature = self.interpreter.get_signature_runner()
        self.inputs: dict[str, Any] = signature.get_input_details()
        self.outputs: list[Any] = list(signature.get_output_details().values())
        self.last: tuple[Mapping[str, Array], list[tuple[int, Array]]] = ({}, [])

    def __call__(self, feed: Mapping[str, Array]) -> Sequence[Array]:
        if self.last[0] is not feed:
            self.last = (feed, [self._given(n, d, feed) for n, d in self.inputs.items()])
        for index, array in self.last[1]:
            self.interpreter.set_tensor(index, array)
        self.interpreter.invoke()
        return _Outputs(
            self.outputs, [self.interpreter.get_tensor(o["index"]) for o in self.outputs]
        )

    def _given(self, name: str, details: Any, feed: Mapping[str, Array]) -> tuple[int, Array]:
        array = feed[name]
        scale, zero_point = details["quantization"]
        if scale and array.dtype == np.float32:
            limits = np.iinfo(details["dtype"])
            array = np.clip(np.rint(array / scale) + zero_point, limits.min, limits.max)
        return details["index"], np.ascontiguousarray(array, dtype=details["dtype"])


class _Outputs(Sequence[Array]):
    """Outputs of a model, in floats when they are looked at."""

    def __init__(self, details: Sequence[Any], raw: Sequence[Array]) -> None:
        self.details, self.raw = details, raw

    def __len__(self) -> int:
        return len(self.raw)

    @overload
    def __getitem__(self, index: int) -> Array: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Array]: ...
    def __getitem__(self, index: int | slice) -> Array | Sequence[Array]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        scale, zero_point = self.details[index]["quantization"]
        raw = self.raw[index]
        if not scale:
            return raw
        floats: Array = (raw.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
        return floats


def write_tflite(name: str, graph: QuantizedGraph, path: Path, example: Inputs) -> TfliteVariant:
    """Write a quantized graph as the product does, without what it keeps beside it to verify."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = graph.float_graph
    flat = [example.get(name) for name in source.input_names]
    path.write_bytes(write_model(graph, *sizes_of(source, flat)))
    return TfliteVariant(name=name, path=path)
