"""How a TFLite file is written where there is a choice; what it computes stays the plan's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class TfliteOptions:
    """What ``plan.compile(..., options=...)`` takes for this runtime.

    io: "float" takes and gives the model's own floats. "int8" and "uint8" take and give integers
    for every float input and output, so that nothing in the file is float at its ends: the plan
    must quantize them all. layout: "channels_last" takes and gives images as (N, H, W, C) where
    the file would begin or end by moving the channels; "model" has the model's own order.
    accelerator: whose documentation the file is held against; nothing in it is changed for that.
    """

    io: Literal["float", "int8", "uint8"] = "float"
    layout: Literal["model", "channels_last"] = "model"
    accelerator: Literal["none", "edge-tpu"] = "none"


DEFAULTS: Final = TfliteOptions()
