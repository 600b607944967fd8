"""Pictures in a program: pixels scaled to the model's numbers, put there and read back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch.fx import GraphModule

from advisor.passes.fx import finish, insert_constant
from advisor.targets.base import Mismatch
from advisor.targets.coreml.images import Image, column
from advisor.targets.coreml.names import inputs_of
from advisor.targets.coreml.package import Package
from advisor.targets.manifest import InputRecord

aten = torch.ops.aten

_OPERATORS: Final[dict[str, Any]] = {"scale": aten.mul.Tensor, "bias": aten.add.Tensor}
"""What does each of an image's steps."""


def scale_pixels(module: GraphModule, images: Sequence[Image | None]) -> None:
    """Let the module take pixels where it took numbers.

    images: one per placeholder, None for those that stay.
    Given: a placeholder x. Result: x * scale + bias, with a number for each channel.
    """
    graph = module.graph
    nodes = list(graph.find_nodes(op="placeholder"))
    first = nodes[-1].next
    for node, image in zip(nodes, images, strict=True):
        if image is None:
            continue
        readers, made = list(node.users), node
        for role, numbers in image.steps:
            constant = insert_constant(
                module, first, f"advisor_{role}_{node.name}", torch.as_tensor(column(numbers))
            )
            with graph.inserting_before(first):
                made = graph.call_function(_OPERATORS[role], (made, constant))
            made.meta["val"] = node.meta.get("val")
        for reader in readers:
            reader.replace_input_with(node, made)
    finish(module)


def port_type(ct: Any, name: str, tensor: torch.Tensor, image: Image | None) -> Any:
    """What coremltools is told of an input. ct: coremltools."""
    shape = tuple(tensor.shape)
    if image is None:
        return ct.TensorType(name=name, shape=shape, dtype=tensor.numpy().dtype.type)
    # Scale and bias are operators of our own: coremltools takes but one scale for all channels.
    layout = getattr(ct.colorlayout, image.color)
    return ct.ImageType(name=name, shape=shape, color_layout=layout, channel_first=True)


def compare_images(
    package: Package,
    images: Mapping[str, Image],
    records: Sequence[InputRecord],
    ports: Mapping[str, str],
) -> list[Mismatch]:
    """Inputs that the package does not take as the options said, from the package alone.

    images, ports: pictures and names in the package by input.
    """
    mismatches: list[Mismatch] = []
    for record in records:
        image = images.get(record.name)
        expected = "a tensor" if image is None else _describe(image, record.shape)
        found = _read_port(package, ports[record.name], image)
        if found != expected:
            mismatches.append(Mismatch(name=record.name, expected=expected, found=found))
    return mismatches


def _describe(image: Image, shape: Sequence[int | str]) -> str:
    steps = "".join(f", {role} {list(numbers)}" for role, numbers in image.steps)
    return f"a picture {image.color} of {shape[3]} x {shape[2]}{steps}"


def _read_port(package: Package, port: str, image: Image | None) -> str:
    """The same in words for what the package has."""
    given = {each.name: each.type for each in package.description.input}.get(port)
    if given is None:
        return "nothing"
    if given.WhichOneof("Type") != "imageType":
        return "a tensor"
    held = given.imageType
    color = held.ColorSpace.Name(held.colorSpace)
    steps = "".join(_read_steps(package, port, () if image is None else image.steps))
    return f"a picture {color} of {held.width} x {held.height}{steps}"


def _read_steps(
    package: Package, port: str, expected: Sequence[tuple[str, tuple[float, ...]]]
) -> Iterator[str]:
    """What follows the input in the program, as far as it is of the kinds expected."""
    value = port
    for role, numbers in expected:
        op = _reader(package, value)
        while op is not None and op.op_type == "cast":
            value = op.outputs[0].name
            op = _reader(package, value)
        if op is None or op.op_type != _OPERATORS[role].__name__.partition(".")[0]:
            return
        constants = [var.val for var in inputs_of(op) if var.name != value]
        if len(constants) != 1 or constants[0] is None:
            return
        held = np.asarray(constants[0])
        if held.size not in (1, len(numbers)):
            return
        flat = np.broadcast_to(held.reshape(-1), (len(numbers),))
        # Equal as far as the dtype of the program goes.
        same = np.array_equal(flat, column(numbers).reshape(-1).astype(held.dtype))
        yield f", {role} {list(numbers) if same else [float(each) for each in flat]}"
        value = op.outputs[0].name


def _reader(package: Package, value: str) -> Any | None:
    """The only operator that reads a value."""
    found = [
        op for op in package.evaluator.operations if any(var.name == value for var in inputs_of(op))
    ]
    return found[0] if len(found) == 1 else None
