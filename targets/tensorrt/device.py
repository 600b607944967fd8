"""Run an engine where its GPU is: its numbers, its latency, and the time of every kernel.

Uses TensorRT's documented Python interface, which TensorRT-RTX shares, and PyTorch's CUDA tensors
as its memory.
"""

from __future__ import annotations

import importlib.util
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from statistics import median
from typing import Any, Final

import numpy as np
import torch

from advisor.errors import MissingDependencyError, PlanError
from advisor.targets.base import Mismatch
from advisor.targets.manifest import LayerRecord
from advisor.targets.tensorrt.build_engine import (
    BACKENDS,
    Messages,
    describe_layers,
    load_engine,
)

Array = np.ndarray[Any, Any]

RUNS: Final = 100
"""Of the engine, for its latency; the median counts."""

PROFILED: Final = 20
"""Runs in which every kernel is timed, which makes each of them slower."""

_cuda: Any = torch.cuda
"""Its streams and events come without types."""

_SOURCE: Final = re.compile(r"\[ONNX Layer: (.*?)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTime:
    """One kernel of the engine. seconds: mean of a run. layers: the plan's layers in it."""

    name: str
    seconds: float
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRun:
    """outputs: in the order that was asked for. latency_s: median, inputs already on the GPU."""

    gpu: str
    by: str
    outputs: tuple[Array, ...]
    latency_s: float
    kernels: tuple[KernelTime, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCheck:
    """An engine on its GPU against the simulation. max_abs_error: of any output. mismatches: the
    outputs that leave the bounds of the agreement rule."""

    gpu: str
    by: str
    latency_s: float
    kernels: tuple[KernelTime, ...]
    max_abs_error: float
    mismatches: tuple[Mismatch, ...]

    @property
    def ok(self) -> bool:
        """Whether every output agrees with the simulation."""
        return not self.mismatches


def find_backend() -> str:
    """The backend of ``build_engine`` that can run here, TensorRT before TensorRT-RTX.

    Raises:
        MissingDependencyError: no GPU that PyTorch can use, or neither package.
    """
    if not torch.cuda.is_available():
        raise MissingDependencyError(
            "running the engine needs an NVIDIA GPU and PyTorch built for CUDA, and PyTorch "
            f"{torch.__version__} sees no GPU here; without one, artifact.verify() checks the file "
            "and its kernels, and artifact.run() gives its numbers on the CPU"
        )
    for backend, package in BACKENDS.items():
        if importlib.util.find_spec(package) is not None:
            return backend
    raise MissingDependencyError(
        "running the engine needs tensorrt or tensorrt_rtx; run: pip install tensorrt"
    )


def run_engine(
    engine: bytes,
    feeds: Mapping[str, Array],
    outputs: Sequence[str],
    layers: Iterable[LayerRecord],
    *,
    backend: str,
) -> GpuRun:
    """Execute an engine on this machine's GPU and time it.

    feeds: by input name, of shapes inside the engine's ranges. outputs: names of those wanted.

    Raises:
        PlanError: TensorRT cannot load the engine, does not take the inputs, or fails.
    """
    trt: Any = import_module(BACKENDS[backend])
    messages = Messages()
    try:
        loaded = load_engine(trt, engine, messages)
    except RuntimeError as error:
        raise PlanError(f"TensorRT cannot load the engine: {error}") from error
    context = loaded.create_execution_context()
    inputs = {name: torch.as_tensor(array).cuda() for name, array in feeds.items()}
    for name, tensor in inputs.items():
        if not context.set_input_shape(name, tuple(tensor.shape)):
            raise PlanError(
                f"the engine does not take {name} as {list(tensor.shape)}: {messages.say()}; "
                "give profile.json a range with that shape and build again"
            )
    names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
    found: dict[str, torch.Tensor] = {}
    for name in names:
        if name not in inputs:
            dtype = getattr(torch, torch_name(loaded.get_tensor_dtype(name)))
            found[name] = torch.empty(
                tuple(context.get_tensor_shape(name)), dtype=dtype, device="cuda"
            )
    for name, tensor in {**inputs, **found}.items():
        context.set_tensor_address(name, tensor.data_ptr())
    stream = _cuda.Stream()

    def call() -> None:
        if not context.execute_async_v3(stream.cuda_stream):
            raise PlanError(f"TensorRT could not run the engine: {messages.say()}")

    torch.cuda.synchronize()
    call()
    stream.synchronize()
    arrays = tuple(found[name].cpu().float().numpy() for name in outputs)
    latency_s = _time(call, stream)
    times = _profile(trt, context, call, stream)
    return GpuRun(
        gpu=torch.cuda.get_device_name(),
        by=f"{BACKENDS[backend]} {trt.__version__}",
        outputs=arrays,
        latency_s=latency_s,
        kernels=name_kernels(times, describe_layers(trt, loaded), layers),
    )


def name_kernels(
    seconds: Mapping[str, float], described: Sequence[Any], layers: Iterable[LayerRecord]
) -> tuple[KernelTime, ...]:
    """Kernels, the slowest first, with the plan's layers that each computes.

    seconds: by the engine's own name of the kernel. described: by the inspector,
    whose metadata name the ONNX nodes of a kernel; one without them belongs to no layer.
    """
    nodes: dict[str, list[str]] = {
        each["Name"]: _SOURCE.findall(each.get("Metadata", ""))
        for each in described
        if not isinstance(each, str)  # an engine without detail has names alone
    }
    names = {layer.node: layer.name for layer in layers}
    found = [
        KernelTime(
            name=name,
            seconds=value,
            layers=tuple(dict.fromkeys(names[n] for n in nodes.get(name, ()) if n in names)),
        )
        for name, value in seconds.items()
    ]
    return tuple(sorted(found, key=lambda kernel: -kernel.seconds))


def _time(call: Any, stream: Any) -> float:
    """Median seconds of a run, by the GPU's own clock."""
    spans: list[float] = []
    for index in range(RUNS + RUNS // 10):
        begin, end = (_cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(stream)
        call()
        end.record(stream)
        end.synchronize()
        if index >= RUNS // 10:  # the first runs find the clocks low
            spans.append(begin.elapsed_time(end) / 1e3)
    return median(spans)


def _profile(trt: Any, context: Any, call: Any, stream: Any) -> dict[str, float]:
    """Mean seconds by kernel."""
    spent: defaultdict[str, float] = defaultdict(float)

    class Profiler(trt.IProfiler):  # type: ignore[misc]  # it comes without types
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            spent[layer_name] += ms / 1e3 / PROFILED

    context.profiler = Profiler()
    for _ in range(PROFILED):
        call()
        stream.synchronize()
    return dict(spent)


def torch_name(dtype: Any) -> str:
    """The name in PyTorch of a dtype of TensorRT."""
    name = str(dtype).rpartition(".")[2].lower()
    known = {"float": "float32", "half": "float16", "bf16": "bfloat16"}  # others are named alike
    return known.get(name, name)
