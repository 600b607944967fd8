"""Inputs that a package takes as pictures: eight bits per channel, scaled inside the package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch.fx import GraphModule

from advisor.errors import InputError, UnsupportedError, UsageError
from advisor.passes.fx import finish, insert_constant
from advisor.targets.base import Mismatch
from advisor.targets.coreml.names import inputs_of
from advisor.targets.coreml.options import NONE, CoremlOptions, read_names, read_numbers
from advisor.targets.coreml.package import Package
from advisor.targets.fixedshapes import FixedShapes
from advisor.targets.manifest import InputRecord

aten = torch.ops.aten
Array = np.ndarray[Any, Any]

COLORS: Final = {1: ("GRAYSCALE",), 3: ("RGB", "BGR")}
"""By channels, the orders that Core ML gives them in; the first is the usual one."""

BRIGHTEST: Final = 255

FEW_LEVELS: Final = 8
"""Numbers that span fewer pixel values than this were hardly meant to be pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """How a picture becomes what the model reads: pixel * scale + bias, per channel.

    color: order of the model's channels, a value of ``COLORS``. scale, bias: one per channel.
    """

    color: str
    scale: tuple[float, ...]
    bias: tuple[float, ...]

    @property
    def steps(self) -> tuple[tuple[str, tuple[float, ...]], ...]:
        """What is done to a pixel, in order, without what would change nothing."""
        pairs = (("scale", self.scale, 1.0), ("bias", self.bias, 0.0))
        return tuple((role, numbers) for role, numbers, idle in pairs if set(numbers) != {idle})

    def values_of(self, pixels: Array) -> Array:
        """float32 numbers of the model for uint8 pixels, both (rows, channels, height, width)."""
        made: Array = pixels.astype(np.float32) * _column(self.scale) + _column(self.bias)
        return made

    def pixels_of(self, values: Array) -> Array:
        """The nearest uint8 pixels to float32 numbers of the model."""
        made: Array = np.rint(self.levels_of(values)).clip(0, BRIGHTEST).astype(np.uint8)
        return made

    def levels_of(self, values: Array) -> Array:
        """What pixels would have to be to give exactly these numbers."""
        exact: Array = values.astype(np.float64) - _column(self.bias).astype(np.float64)
        return exact / _column(self.scale).astype(np.float64)

    def halved(self, values: Array) -> Array:
        """The numbers that a float16 program makes of the pixels of these."""
        made = self.pixels_of(values).astype(np.float16)
        for role, numbers in self.steps:
            column = _column(numbers).astype(np.float16)
            made = made * column if role == "scale" else made + column
        return made.astype(np.float32)

    def check(self, name: str, values: Array) -> None:
        """Refuse numbers that no pixel can stand for.

        Raises:
            InputError: one is more than half a pixel below 0 or above 255.
        """
        low, high = self._span(values)
        if low < -0.5 or high > BRIGHTEST + 0.5:
            raise InputError(
                f"the package takes {name!r} as pixels, 0 to {BRIGHTEST}, but these numbers would "
                f"be {low:.4g} to {high:.4g} by the scale and bias it was compiled with; give "
                "uint8 pixels, or numbers inside that range"
            )

    def note_on(self, name: str, values: Array) -> str:
        """What does not fit about numbers that the model is checked on; empty when all does."""
        low, high = self._span(values)
        if low >= -0.5 and high <= BRIGHTEST + 0.5 and high - low >= FEW_LEVELS:
            return ""
        return (
            f"the example input {name!r} would be pixels {low:.4g} to {high:.4g}, where pictures "
            f"have 0 to {BRIGHTEST}: check image_scale and image_bias, or calibrate on pictures; "
            "compared on the nearest pixels"
        )

    def _span(self, values: Array) -> tuple[float, float]:
        levels = self.levels_of(values)
        return (float(levels.min()), float(levels.max())) if levels.size else (0.0, 0.0)


def choose_images(
    options: CoremlOptions, records: Sequence[InputRecord], shapes: FixedShapes
) -> dict[str, Image]:
    """The pictures among the model's inputs that the options ask for, by name.

    Raises:
        UsageError: no such input, colors or numbers that do not fit its channels, or a scale
            without a picture.
        UnsupportedError: the input is no picture, or the plan is for several at once.
    """
    if options.image == NONE:
        changed = [
            name
            for name, value, default in (
                ("image_color", options.image_color, "auto"),
                ("image_scale", options.image_scale, "1"),
                ("image_bias", options.image_bias, "0"),
            )
            if value != default
        ]
        if changed:
            raise UsageError(
                f"option {changed[0]} needs to know the picture: add image=NAME; inputs: "
                f"{', '.join(record.name for record in records)}"
            )
        return {}
    known = {record.name: record for record in records}
    found: dict[str, Image] = {}
    for name in read_names(options.image):
        if name not in known:
            raise UsageError(f"image={name!r}: no such input; inputs: {', '.join(known)}")
        found[name] = _image(options, known[name], shapes)
    return found


def _image(options: CoremlOptions, record: InputRecord, shapes: FixedShapes) -> Image:
    name, shape = record.name, record.shape
    sizes = f"{record.dtype} [{', '.join(map(str, shape))}]"
    if len(shape) != 4 or shape[1] not in COLORS or record.dtype != "float32":
        raise UnsupportedError(
            f"image={name!r}: the input is {sizes}; a picture is float32 [1, channels, height, "
            "width] with 1 or 3 channels; leave it a tensor"
        )
    if shapes.batch != 1 or shape[0] not in ("batch", 1):
        raise UnsupportedError(
            f"image={name!r}: Core ML takes one picture per call, but the plan is for "
            f"{shapes.batch} at once; plan with advise(..., batch=1)"
        )
    channels = int(shape[1])
    possible = COLORS[channels]
    color = possible[0] if options.image_color == "auto" else options.image_color
    if color not in possible:
        raise UsageError(
            f"image_color={color}: input {name!r} has {channels} channel(s), {sizes}; possible: "
            f"{', '.join(possible)}"
        )
    return Image(
        color=color,
        scale=_per_channel("image_scale", options.image_scale, name, channels),
        bias=_per_channel("image_bias", options.image_bias, name, channels),
    )


def _per_channel(option: str, text: str, name: str, channels: int) -> tuple[float, ...]:
    given = read_numbers(text)
    if len(given) not in (1, channels):
        raise UsageError(
            f"{option}={text}: {len(given)} numbers for {channels} channel(s) of {name!r}; give "
            f"one, or {channels}"
        )
    return given * (channels // len(given))


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
                module, first, f"advisor_{role}_{node.name}", torch.from_numpy(_column(numbers))
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
        (constant,) = [var.val for var in inputs_of(op) if var.name != value]
        held = np.asarray(constant)
        flat = np.broadcast_to(held.reshape(-1), (len(numbers),))
        # Equal as far as the dtype of the program goes.
        same = np.array_equal(flat, np.asarray(numbers, dtype=held.dtype))
        yield f", {role} {list(numbers) if same else [float(each) for each in flat]}"
        value = op.outputs[0].name


def _reader(package: Package, value: str) -> Any | None:
    """The only operator that reads a value."""
    found = [
        op for op in package.evaluator.operations if any(var.name == value for var in inputs_of(op))
    ]
    return found[0] if len(found) == 1 else None


def _column(numbers: Sequence[float]) -> Array:
    """One number per channel, against (rows, channels, height, width)."""
    return np.asarray(numbers, dtype=np.float32).reshape(1, -1, 1, 1)


_OPERATORS: Final[dict[str, Any]] = {"scale": aten.mul.Tensor, "bias": aten.add.Tensor}
