"""Inputs that a package takes as pictures: eight bits per channel, scaled inside the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from advisor.errors import InputError, UnsupportedError, UsageError
from advisor.targets.coreml.options import NONE, CoremlOptions, read_names, read_numbers
from advisor.targets.fixedshapes import FixedShapes
from advisor.targets.manifest import InputRecord

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
        made: Array = pixels.astype(np.float32) * column(self.scale) + column(self.bias)
        return made

    def pixels_of(self, values: Array) -> Array:
        """The nearest uint8 pixels to float32 numbers of the model."""
        made: Array = np.rint(self.levels_of(values)).clip(0, BRIGHTEST).astype(np.uint8)
        return made

    def levels_of(self, values: Array) -> Array:
        """What pixels would have to be to give exactly these numbers."""
        exact: Array = values.astype(np.float64) - column(self.bias).astype(np.float64)
        return exact / column(self.scale).astype(np.float64)

    def halved(self, values: Array) -> Array:
        """The numbers that a float16 program makes of the pixels of these."""
        made = self.pixels_of(values).astype(np.float16)
        for role, numbers in self.steps:
            each = column(numbers).astype(np.float16)
            made = made * each if role == "scale" else made + each
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


def column(numbers: Sequence[float]) -> Array:
    """One number per channel, against (rows, channels, height, width)."""
    return np.asarray(numbers, dtype=np.float32).reshape(1, -1, 1, 1)
