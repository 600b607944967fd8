"""Between the model's own tensors and its file's: order of the axes, rounding to integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from advisor.targets.base import Mismatch
from advisor.targets.manifest import PortRecord
from advisor.targets.tflite.border import read_ports
from advisor.targets.tflite.flatbuffer import FlatModel

Array = np.ndarray[Any, Any]


def to_file(ports: Sequence[PortRecord], arrays: Sequence[Array]) -> list[Array]:
    """Inputs as the file takes them, from the model's own in the file's order."""
    inputs = [port for port in ports if port.kind == "input"]
    return [_to_file(port, array) for port, array in zip(inputs, arrays, strict=True)]


def from_file(ports: Sequence[PortRecord], arrays: Sequence[Array]) -> list[Array]:
    """Outputs as the model has them, from the file's own in its order."""
    outputs = [port for port in ports if port.kind == "output"]
    return [_from_file(port, array) for port, array in zip(outputs, arrays, strict=True)]


def compare_ports(ports: Sequence[PortRecord], model: FlatModel) -> list[Mismatch]:
    """Inputs and outputs of a file that are not what the manifest says."""
    found = {(port.kind, port.name): port for port in read_ports(model, ports)}
    expected = {(port.kind, port.name): port for port in ports}
    return [
        Mismatch(
            name=f"{kind} {name}",
            expected=describe_port(expected.get((kind, name))),
            found=describe_port(found.get((kind, name))),
        )
        for kind, name in dict.fromkeys((*expected, *found))
        if expected.get((kind, name)) != found.get((kind, name))
    ]


def describe_port(port: PortRecord | None) -> str:
    """ "int8 [1, 32, 32, 3], scale 0.0078, zero point -1"."""
    if port is None:
        return "none of that name"
    scale = "" if port.scale is None else f", scale {port.scale:.9g}, zero point {port.zero_point}"
    moved = "" if port.order == tuple(sorted(port.order)) else ", channels last"
    return f"{port.dtype} [{', '.join(map(str, port.shape))}]{moved}{scale}"


def _to_file(port: PortRecord, array: Array) -> Array:
    moved = array.transpose(port.order)
    if port.scale is None:
        return moved
    # In the simulation's own arithmetic: division in float32, ties to even.
    step, limits = np.float32(port.scale), np.iinfo(port.dtype)
    integers = np.rint(moved.astype(np.float32) / step) + np.float32(port.zero_point)
    rounded: Array = np.clip(integers, limits.min, limits.max).astype(port.dtype)
    return rounded


def _from_file(port: PortRecord, array: Array) -> Array:
    if port.scale is not None:
        array = (array.astype(np.float32) - np.float32(port.zero_point)) * np.float32(port.scale)
    moved: Array = array.transpose(np.argsort(port.order))
    return moved
