"""ONNX files on disk. onnx_ir leaves its paths' type open, so it is met with types here only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from advisor.targets.onnxruntime.session import require

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

LARGE_BYTES: Final = 10_000_000
"""From here on weights go to a file beside the model. ONNX Runtime maps such a file into memory
and reads what it needs; weights inside the model are in memory twice while it is opened, and from
2 GiB on protobuf does not hold them."""


LEAST_SHARED_BYTES: Final = 65_536
"""Smaller constants stay in the model file; copies of them cost less than a second file."""

PAGE_BYTES: Final = 4096
"""Offsets in the weight file are multiples of this, so that it can be mapped into memory."""


def load_model(path: Path) -> ir.Model:
    """Read a model.

    Raises:
        MissingDependencyError: onnx_ir is not installed.
    """
    return cast("ir.Model", _onnx_ir().load(path))


def save_model(model: ir.Model, path: Path, external: str | None = None) -> None:
    """Write a model. external: name of a file beside it for the weights; None: in the model."""
    _onnx_ir().save(model, path, external_data=external)


def write_model(model: ir.Model, path: Path) -> None:
    """Write the model of an artifact; its constants may become references to a file.

    Weights go to model.onnx.data when they are large. So do those with equal bytes,
    which are stored there once: ONNX Runtime fuses a weight-only layer only when no other reads
    the same constant, but two constants may be the same stretch of a file.
    """
    tensors = [value.const_value for value in model.graph.initializers.values()]
    held = [tensor for tensor in tensors if tensor is not None]
    if sum(tensor.nbytes for tensor in held) > LARGE_BYTES or _has_copies(held):
        _move_outside(model, path.with_name(f"{path.name}.data"))
    save_model(model, path)


def sizes_of(model: ir.Model, arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, int]:
    """What the dynamic dimensions of the inputs are for these arrays, by the dimension's name."""
    return {
        str(dimension.value): size
        for value in model.graph.inputs
        if value.shape is not None
        for dimension, size in zip(value.shape, arrays[str(value.name)].shape, strict=True)
        if not isinstance(dimension, int)
    }


def _has_copies(tensors: Sequence[ir.TensorProtocol]) -> bool:
    candidates = [tensor for tensor in tensors if tensor.nbytes >= LEAST_SHARED_BYTES]
    digests = {sha256(tensor.tobytes()).digest() for tensor in candidates}
    return len(digests) < len(candidates)


def _move_outside(model: ir.Model, file: Path) -> None:
    """Write large constants to ``file``, equal ones once, and refer to them there."""
    import onnx_ir as ir

    offsets: dict[bytes, int] = {}
    with file.open("wb") as out:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < LEAST_SHARED_BYTES:
                continue
            content = tensor.tobytes()
            digest = sha256(content).digest()
            if digest not in offsets:
                out.write(bytes(-out.tell() % PAGE_BYTES))
                offsets[digest] = out.tell()
                out.write(content)
            value.const_value = ir.ExternalTensor(
                file.name,
                offsets[digest],
                len(content),
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=str(value.name),
                base_dir=file.parent,
            )


def _onnx_ir() -> Any:
    require("onnx_ir")
    import onnx_ir

    return onnx_ir
