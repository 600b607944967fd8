"""Build a TensorRT engine from the model.onnx beside this file.

    python build_engine.py                            # TensorRT 10 or 11, on the GPU it is for
    python build_engine.py --backend rtx --sm 89      # TensorRT-RTX, for that compute capability

Needs ``tensorrt`` and a GPU, or ``tensorrt_rtx``, which compiles on any machine; nothing else.
profile.json has the range of every dynamic dimension and may be edited:

    {"x": {"min": [1, 3, 224, 224], "opt": [8, 3, 224, 224], "max": [32, 3, 224, 224]}}

The network is strongly typed: every precision is in model.onnx, and the builder may not change it.
TF32 is as options.json says, on where there is none. Writes the engine, and layers.json with what
it is made of. Exit status 2 when there is none of them, with what was refused and where.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

BACKENDS = {"trt": "tensorrt", "rtx": "tensorrt_rtx"}
LAYERS = "Layers:"
"""Begins the verbose message in which TensorRT-RTX lists the engine's kernels, one a line."""

Ranges = Mapping[str, Mapping[str, Sequence[int]]]
"""By input name "min", "opt" and "max" shapes."""


@dataclass(frozen=True)
class Built:
    """engine: its bytes, None when there is none. layers: one line per kernel, as the builder wrote
    it (TensorRT-RTX only). problems: what was refused. version: of the builder."""

    engine: bytes | None
    layers: tuple[str, ...]
    problems: tuple[str, ...]
    version: str


@dataclass
class Messages:
    """What the builder said that matters here."""

    errors: list[str] = field(default_factory=list[str])
    layers: list[str] = field(default_factory=list[str])

    def say(self) -> str:
        """The errors in a line."""
        return "; ".join(self.errors) or "it gives no reason"

    def take(self, severity: str, text: str) -> None:
        """Keep errors, and the list of kernels out of all verbose messages."""
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(" ".join(text.split()))
        elif text.lstrip().startswith(LAYERS):
            self.layers = [line for line in text.splitlines() if line.startswith("Name:")]


def build(
    model: Path,
    ranges: Ranges,
    *,
    backend: str = "trt",
    sm: str = "",
    tf32: bool = True,
    cache: Path | None = None,
) -> Built:
    """Parse and compile one model.

    ranges: of inputs with dynamic dimensions. sm: compute capability such as "89", for TensorRT-RTX
    alone; empty: this machine's. tf32: whether float32 products may run in TF32, a switch for the
    whole engine. cache: file of measured kernels to read and write (TensorRT alone).
    """
    trt: Any = import_module(BACKENDS[backend])
    messages = Messages()
    logger = open_logger(trt, messages)
    builder = trt.Builder(logger)
    flags = _strongly_typed(trt)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)

    def give_up(problems: Sequence[str]) -> Built:
        return Built(None, (), tuple(problems), str(trt.__version__))

    if not parser.parse_from_file(str(model.resolve())):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        return give_up([f"{each.node_name()}: {_first_line(each.desc())}" for each in found])
    missing = missing_ranges(_dynamic_inputs(network), ranges)
    if missing:
        return give_up(missing)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if not tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if backend == "rtx" and sm:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), 0)
    if ranges:
        profile = builder.create_optimization_profile()
        for name, shapes in ranges.items():
            profile.set_shape(name, *(tuple(shapes[key]) for key in ("min", "opt", "max")))
        config.add_optimization_profile(profile)
    if backend == "trt" and cache is not None:
        known = cache.read_bytes() if cache.exists() else b""
        config.set_timing_cache(config.create_timing_cache(known), False)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        return give_up(messages.errors or ["the builder gave no engine and no reason"])
    if backend == "trt" and cache is not None:
        cache.write_bytes(memoryview(config.get_timing_cache().serialize()))
    engine = bytes(memoryview(serialized))
    return Built(engine, tuple(messages.layers), (), str(trt.__version__))


def missing_ranges(dynamic: Mapping[str, Sequence[int]], ranges: Ranges) -> list[str]:
    """Inputs that have a dynamic dimension (-1) and no range of their rank to build for."""
    problems: list[str] = []
    for name, shape in dynamic.items():
        found = ranges.get(name)
        place = [index for index, size in enumerate(shape) if size < 0]
        if found is None:
            problems.append(
                f"input {name} {list(shape)} has dynamic dimensions {place} but no range: add "
                f"its min, opt and max shapes to profile.json"
            )
            continue
        for key in ("min", "opt", "max"):
            wanted = found.get(key, ())
            fits = len(wanted) == len(shape) and all(
                size in (-1, given) for size, given in zip(shape, wanted, strict=True)
            )
            if not fits:
                problems.append(f"profile.json: {name}.{key} {list(wanted)} is no {list(shape)}")
    return problems


def load_engine(trt: Any, engine: bytes, messages: Messages) -> Any:
    """The engine on its GPU. Raises RuntimeError where TensorRT cannot load it."""
    loaded = trt.Runtime(open_logger(trt, messages)).deserialize_cuda_engine(engine)
    if loaded is None:
        raise RuntimeError(messages.say())
    return loaded


def describe_layers(trt: Any, loaded: Any) -> list[Any]:
    """What the inspector says of a loaded engine, layer by layer."""
    inspector = loaded.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    found: list[Any] = json.loads(text)["Layers"]
    return found


def _strongly_typed(trt: Any) -> int:
    """The flag of the network; TensorRT 11 knows no other kind and may have dropped it."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def open_logger(trt: Any, messages: Messages) -> Any:
    """A logger of TensorRT's that keeps what matters in ``messages``."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # it comes without types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            messages.take(str(severity).rpartition(".")[2], msg)

    return Logger()


def _dynamic_inputs(network: Any) -> dict[str, tuple[int, ...]]:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {str(tensor.name): tuple(tensor.shape) for tensor in inputs}
    return {name: shape for name, shape in shapes.items() if -1 in shape}


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")


def main() -> int:
    """Build as the command line says."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Build a TensorRT engine from model.onnx")
    parser.add_argument("--model", type=Path, default=here / "model.onnx")
    parser.add_argument("--profile", type=Path, default=here / "profile.json")
    parser.add_argument("--options", type=Path, default=here / "options.json")
    parser.add_argument("--out", type=Path, default=here / "model.engine")
    parser.add_argument("--layers", type=Path, default=here / "layers.json")
    parser.add_argument("--backend", choices=list(BACKENDS), default="trt")
    parser.add_argument("--sm", default="", help="compute capability for --backend rtx, like 89")
    parser.add_argument("--timing-cache", type=Path)
    parser.add_argument("--no-tf32", action="store_true", help="float32 products stay float32")
    asked = parser.parse_args()
    ranges: Ranges = {}
    if asked.profile.exists():
        ranges = json.loads(asked.profile.read_text())
    options: dict[str, str] = {}
    if asked.options.exists():
        options = json.loads(asked.options.read_text())
    built = build(
        asked.model,
        ranges,
        backend=asked.backend,
        sm=asked.sm,
        tf32=not asked.no_tf32 and options.get("tf32", "on") == "on",
        cache=asked.timing_cache,
    )
    if built.engine is None:
        sys.stderr.write("\n".join(built.problems) + "\n")
        return 2
    asked.out.write_bytes(built.engine)
    try:
        layers: list[Any] = list(built.layers)
        if asked.backend == "trt":
            trt: Any = import_module(BACKENDS["trt"])
            layers = describe_layers(trt, load_engine(trt, built.engine, Messages()))
    except RuntimeError as error:
        sys.stderr.write(f"{asked.out} is written, but TensorRT cannot load it here: {error}\n")
        return 2
    asked.layers.write_text(json.dumps(layers, indent=1) + "\n")
    sys.stdout.write(f"{asked.out}: {len(built.engine)} bytes, {len(layers)} layers\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
