"""How a Core ML package is written where there is a choice."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Final, Literal

from advisor.targets.options import Free

NONE: Final = "none"


def read_names(text: str) -> tuple[str, ...]:
    """The names in "left,right".

    Raises:
        ValueError: one of them is empty or there twice.
    """
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise ValueError("a name is empty or there twice")
    return names


def read_numbers(text: str) -> tuple[float, ...]:
    """The numbers in "0.5,1/255".

    Raises:
        ValueError: something else is there, or a number that is not finite.
    """
    found: list[float] = []
    for part in text.split(","):
        above, slash, below = part.partition("/")
        try:
            value = float(above) / (float(below) if slash else 1.0)
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{part.strip()!r} is not a number") from error
        if not isfinite(value):
            raise ValueError(f"{part.strip()!r} is not finite")
        found.append(value)
    return tuple(found)


def read_scales(text: str) -> tuple[float, ...]:
    """The numbers in ``text``, none of them zero.

    Raises:
        ValueError: something else is there, or a zero.
    """
    found = read_numbers(text)
    if 0.0 in found:
        raise ValueError("a scale of 0 makes every pixel the same")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class CoremlOptions:
    """What ``plan.compile(..., options=...)`` takes for this runtime.

    deployment: the oldest system that must run the package; "auto" is the profile's own. A plan
    that needs a newer one is refused. iOS15 to iOS18 are macOS 12 to 15. compute: dtype of the
    activations and the arithmetic of every layer whose scheme leaves it to the runtime: layers
    under fp32 and fp16 have their own. The simulation computes in float32.

    image: names of inputs (1, channels, height, width) that the package takes as pictures, whose
    pixels are 0 to 255; the model reads pixel * image_scale + image_bias, each one number or one
    per channel. image_color: the order of the model's channels; "auto" is RGB for three of them
    and GRAYSCALE for one. labels: a text file with one label per line, for the classes of the
    model's only output; the package then gives the best label and every label's score.
    """

    deployment: Literal["auto", "iOS15", "iOS16", "iOS17", "iOS18", "iOS26"] = "auto"
    compute: Literal["float16", "float32"] = "float16"
    image: Annotated[str, Free("names of inputs, with commas between them", read_names)] = NONE
    image_color: Literal["auto", "RGB", "BGR", "GRAYSCALE"] = "auto"
    image_scale: Annotated[
        str, Free("a number such as 1/255, or one per channel with commas between", read_scales)
    ] = "1"
    image_bias: Annotated[
        str, Free("a number, or one per channel such as -0.5,-0.5,-0.5", read_numbers)
    ] = "0"
    labels: Annotated[str, Free("the path of a text file with one label per line", str)] = NONE


DEFAULTS: Final = CoremlOptions()
